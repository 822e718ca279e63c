"""The Delta table at `labels/<data set>`: the same files that the view lists, one commit for each view.

Nothing is copied and nothing deleted: a commit names the files that left and those that came. It carries the view's
number, so a slow run never takes the table back to an older view, and the next run makes up for a commit that was lost.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import time_ns
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from pipeline import layout
from pipeline.deltaschema import Footer, declared, read_footer
from pipeline.errors import ConfigError, StorageError, TransientError, UsageError
from pipeline.publication import View, read_view
from pipeline.refusals import first_line, printable
from pipeline.schema import prediction_schema
from pipeline.settings import StorageSettings
from pipeline.storage import Storage, join, scheme_of
from pipeline.tables import read_table

VIEW = "nightshift.view"  # the application transaction: its version is the number of the view
ATTEMPTS = 50  # each one lost to another run's commit
READS_AT_ONCE = 8
# Labels of superseded views are `nightshift clean`'s to delete: a table's VACUUM would take files that the ledger names.
CONFIGURATION: dict[str, str | None] = {"delta.deletedFileRetentionDuration": "interval 520 weeks"}


def require_deltalake(url: str, dataset: str) -> None:
    """Raise ConfigError when no table can be kept for a data set in the store at `url`."""
    try:
        import deltalake  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "output.table is delta, which needs the package deltalake: pip install -e '.[delta]', or set "
            "output.table to files"
        ) from error
    location = join(url, layout.table(dataset))
    if scheme_of(url) in ("http", "https", "memory"):
        raise ConfigError(f"output.table is delta, but no table can be kept at {location}; use a folder or a bucket")
    if "%" in location:  # deltalake (1.6.6) decodes %41 in a table's location, writes, and reads elsewhere
        raise ConfigError(
            f"output.table is delta, but deltalake cannot open {location} for the % in it; choose a store and an input.name "
            "without"
        )


def sync_table(storage: Storage, settings: StorageSettings, dataset: str) -> bool:
    """Bring the table in step with the current view, and say whether that took a commit.

    Two at once are safe: who loses looks again, at the newest view.

    Raises
    ------
    UsageError
        When someone else's table lies there, or the files' columns do not fit one table.
    """
    url, options = _location(storage.url, dataset), _options(storage.url, settings)
    for _ in range(ATTEMPTS):
        table = _open(url, options)  # before the view, so that the view is not the older of the two
        view = read_view(storage, dataset)
        if view is None or (table and table.view > view.n):
            return False
        change = _difference(storage, dataset, table, view)
        if change is None:
            return False
        with _translated(url):
            if table is None:
                done = _create(url, options, change, view)
            elif new := _new_columns(url, table.columns, change):
                _add_columns(table, list(new.values()))
                continue  # old rows have no value in them; the files come with the next commit
            else:
                done = _commit(table, change, view)
        if done:
            return True
    raise TransientError(
        f"the Delta table {url} was changed by others {ATTEMPTS} times in a row; run the command again"
    )


@dataclass(frozen=True)
class Table:
    """One version of the table: the files (path below it: size) and columns that it has, and the view that it shows."""

    handle: Any
    view: int
    files: Mapping[str, int]
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """Files that come (path below the table: size) with their footers, files that left, and the columns of all that come."""

    added: Mapping[str, int]
    removed: Mapping[str, int]
    footers: Mapping[str, Footer]
    columns: Sequence[Mapping[str, pa.DataType]]


def _open(url: str, options: dict[str, str]) -> Table | None:
    """Return the table as it is now, None where there is none yet."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    with _translated(url):
        try:
            handle = DeltaTable(url, storage_options=options)
        except TableNotFoundError:
            return None
        view = handle.transaction_version(VIEW)
        if view is None:
            raise UsageError(
                f"{url} is a Delta table that nightshift did not make; expected none, or its own. Move it away, or choose "
                "another store or input.name"
            )
        actions = pa.table(handle.get_add_actions(flatten=True)).select(["path", "size_bytes"])
        files = dict(zip(*(column.to_pylist() for column in actions.columns), strict=True))
        return Table(handle, view, files, {field.name: field for field in handle.schema().fields})


def _difference(storage: Storage, dataset: str, table: Table | None, view: View) -> Change | None:
    """Return what leads from the table to the view, None when nothing does."""
    root = f"{layout.table(dataset)}/"
    wanted = {file["path"].removeprefix(root): file["size_bytes"] for file in view.document["files"]}
    present = table.files if table else {}
    added = {path: size for path, size in wanted.items() if present.get(path) != size}
    removed = {path: size for path, size in present.items() if path not in wanted}
    if table and not added and not removed:
        return None
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        footers = dict(zip(added, pool.map(lambda path: read_footer(storage, root + path), added), strict=True))
    columns: list[Mapping[str, pa.DataType]] = [footer.columns for footer in footers.values()]
    if not table and not added:
        # A first view without labels: the type of its ids, which a table cannot change later, stands in what it rejected.
        for path in view.document["quarantine_files"][:1]:
            ids = read_table(storage, path, ("image_id",)).schema.field("image_id")
            columns.append(declared(prediction_schema(ids.type), join(storage.url, path)))
    return Change(added, removed, footers, columns) if table or columns else None


def _create(url: str, options: dict[str, str], change: Change, view: View) -> bool:
    from deltalake import Schema
    from deltalake.exceptions import CommitFailedError, DeltaError
    from deltalake.transaction import create_table_with_add_actions

    schema = Schema(list(_new_columns(url, {}, change).values()))
    try:
        create_table_with_add_actions(
            url, schema, _actions(change), "error", configuration=CONFIGURATION, storage_options=options,
            commit_properties=_properties(view),
        )  # fmt: skip
    except CommitFailedError:
        return False
    except DeltaError as error:
        if "already exists" not in str(error):
            raise
        return False
    return True


def _commit(table: Table, change: Change, view: View) -> bool:
    from deltalake.exceptions import CommitFailedError

    schema = table.handle.schema()  # append mode: files that left are named one by one, and no other file is touched
    try:
        table.handle.create_write_transaction(_actions(change), "append", schema, commit_properties=_properties(view))
    except CommitFailedError:
        return False
    return True


def _add_columns(table: Table, fields: Sequence[Any]) -> None:
    """Add columns to the table: yesterday's rows, which readers see a moment longer, have no value in them."""
    from deltalake import CommitProperties
    from deltalake.exceptions import CommitFailedError

    with suppress(CommitFailedError):  # another run's commit came first, perhaps with the same columns: look again
        table.handle.alter.add_columns(list(fields), commit_properties=CommitProperties(max_commit_retries=0))


def _new_columns(url: str, present: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """Return the fields that the table lacks, by name; UsageError when files contradict it or each other."""
    from deltalake import Schema

    fields = dict(present)
    for columns in {str(columns): columns for columns in change.columns}.values():
        for field in Schema.from_arrow(pa.schema(list(columns.items()))).fields:
            known = fields.setdefault(field.name, field)
            if known.type != field.type:
                raise UsageError(
                    f"the column {field.name} has the type {columns[field.name]} in some label files, but {known.type} in the "
                    f"Delta table {url}, and a table has one; make the input's files alike, or set output.table to files. "
                    "The view itself is published"
                )
    return {name: field for name, field in fields.items() if name not in present}


def _actions(change: Change) -> list[Any]:
    from deltalake._internal import RemoveAction
    from deltalake.transaction import AddAction

    now_ms = time_ns() // 1_000_000
    return [
        *(RemoveAction(path, True, now_ms, size, {}) for path, size in change.removed.items()),
        *(
            AddAction(path, size, {}, now_ms, True, change.footers[path].statistics)
            for path, size in change.added.items()
        ),
    ]


def _properties(view: View) -> Any:
    """Return what a commit says besides its files. It is not retried by itself: it would not see what others did."""
    from deltalake import CommitProperties, Transaction

    run_id = str(view.document.get("run_id"))
    return CommitProperties({VIEW: view.n, "nightshift.run": run_id}, 0, [Transaction(VIEW, view.n)])


def _location(url: str, dataset: str) -> str:
    """Return the table's URL; in those of object stores # and ? would have a meaning."""
    scheme, separator, path = join(url, layout.table(dataset)).partition("://")
    return f"{scheme}://{quote(path, '/:@')}" if separator else scheme


def _options(url: str, settings: StorageSettings) -> dict[str, str]:
    """Translate the storage section; keys left out come from the environment or the platform."""
    seconds = f"{settings.timeout_s:g}s"
    options = {"timeout": seconds, "connect_timeout": f"{min(10, settings.timeout_s):g}s"}
    if settings.endpoint and settings.endpoint.startswith("http://"):
        options["allow_http"] = "true"
    scheme = scheme_of(url)
    if scheme in ("s3", "s3a"):
        return options | _s3_options(settings)
    if scheme == "gs" and settings.anonymous:
        options["google_skip_signature"] = "true"
    if scheme in ("az", "abfs", "abfss"):
        options |= {"azure_endpoint": settings.endpoint} if settings.endpoint else {}
        options |= {"azure_skip_signature": "true"} if settings.anonymous else {}
    return options


def _s3_options(settings: StorageSettings) -> dict[str, str]:
    options = {
        "aws_conditional_put": "etag",  # commits are create-only PUTs: no lock table is needed
        "aws_endpoint": settings.endpoint,
        "aws_region": settings.region,
        "aws_skip_signature": "true" if settings.anonymous else None,
        "aws_request_payer": "true" if settings.requester_pays else None,
    }
    if settings.profile:
        import boto3  # the store's own client needed it before

        found = boto3.Session(profile_name=settings.profile).get_credentials().get_frozen_credentials()
        options |= {"aws_access_key_id": found.access_key, "aws_secret_access_key": found.secret_key}
        options |= {"aws_session_token": found.token}
    return {key: value for key, value in options.items() if value is not None}


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn deltalake's errors into ours, with the table's location."""
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as error:
        raise StorageError(
            f"the Delta table {printable(url)}: {first_line(error)}; the view is published, and the next run tries again"
        ) from error
