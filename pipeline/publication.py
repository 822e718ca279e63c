"""The current view: a published list of files, never a glob. Written last, create-only, so readers see one whole night.

A file with stale rows (their input vanished) or with a second row of an image id is listed as a trimmed copy:
labels are copied, never computed again.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import layout
from pipeline.counts import Counts
from pipeline.documents import Document, advance, digest, newest
from pipeline.errors import AlreadyExistsError, NotFoundError
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry
from pipeline.plans import Plan
from pipeline.schema import quarantine_schema, table_of
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tables import Written, read_table, write_table

READS_AT_ONCE = 8


@dataclass(frozen=True)
class View:
    """View number n of a data set: its live label files."""

    n: int
    document: Document

    @property
    def files(self) -> list[str]:
        """Paths below the store."""
        return [file["path"] for file in self.document["files"]]

    @property
    def counts(self) -> Counts:
        """Live images, labelled and quarantined."""
        return Counts(**self.document["counts"])

    @property
    def shard_ids(self) -> set[str]:
        """Shards that were published with it, those without a single label as well."""
        return {file["shard_id"] for file in self.document["files"]} | set(self.document["shards_without_labels"])


def read_view(storage: Storage, dataset: str) -> View | None:
    """Return the current view, None before the first."""
    found = newest(storage, layout.published(dataset))
    return View(*found) if found else None


def publish(
    storage: Storage, generation: Generation, plan: Plan, ledger: Mapping[str, LedgerEntry], about: Document
) -> tuple[View, bool]:
    """Make the live rows of the plan's committed shards the current view.

    Parameters
    ----------
    about : Document
        What else the view's document says: model, version, run id, time.

    Returns
    -------
    tuple[View, bool]
        The current view, and whether it is a new one: an identical list is not published twice, and a view of a
        newer plan is never replaced by one of an older plan.
    """
    content = _content(plan, ledger, generation)
    while True:
        current = read_view(storage, plan.dataset)
        if current and (current.document["plan"] > plan.n or _says(storage, current, content)):
            return current, False
        document = {**about, **_build(storage, generation, plan, ledger), "content": content}
        try:
            number = advance(storage, layout.published(plan.dataset), document, current.n if current else 0)
        except AlreadyExistsError:
            continue  # another run published meanwhile: look at what it wrote
        return View(number, {**document, "n": number}), True


def _says(storage: Storage, view: View, content: str) -> bool:
    """Say whether a view publishes this content, with all the copies that were made for it."""
    if view.document["content"] != content:
        return False
    try:
        return all(storage.stat(path) for path in view.files if "/trimmed/" in path)
    except NotFoundError:
        return False


def _content(plan: Plan, ledger: Mapping[str, LedgerEntry], generation: Generation) -> str:
    rows = [
        [shard.id, ledger[shard.id].labels.sha256, sorted(shard.tombstoned)]
        for shard in plan.shards
        if shard.id in ledger
    ]
    return digest([generation.name, sorted(rows)])


def _build(storage: Storage, generation: Generation, plan: Plan, ledger: Mapping[str, LedgerEntry]) -> Document:
    shards = [shard for shard in plan.shards if shard.id in ledger]
    entries = [ledger[shard.id] for shard in shards]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        columns = ("image_id", "uri", "segment")
        tables = list(pool.map(lambda entry: read_table(storage, entry.labels.path, columns), entries))
    stale = [_stale(table, shard) for table, shard in zip(tables, shards, strict=True)]
    repeated, rejected = _duplicates(tables, stale)
    files, bad = [], []
    for shard, entry, gone, again in zip(shards, entries, stale, repeated, strict=True):
        written = _trim(storage, entry.labels, gone | again, generation.trimmed, shard)
        files.append({"shard_id": shard.id, **written.to_json()})
        bad += _live_quarantine(storage, generation, shard, entry)
    counts = sum((entry.live_counts(shard) for entry, shard in zip(entries, shards, strict=True)), Counts())
    counts += Counts(0, -len(rejected), len(rejected))
    counts.check(f"data set {plan.dataset}, plan {plan.n}")
    return {
        "dataset": plan.dataset,
        "generation": generation.name,
        "fingerprint": generation.fingerprint,
        "plan": plan.n,
        "counts": {"images_in": counts.images_in, "labelled": counts.labelled, "quarantined": counts.quarantined},
        "files": [file for file in files if file["rows"]],
        "shards_without_labels": [file["shard_id"] for file in files if not file["rows"]],
        "quarantine_files": bad + _quarantine(storage, generation, rejected, tables),
        "duplicates": len(rejected),
    }


def live_rows(table: pa.Table, shard: Shard) -> pa.Table:
    """Return the rows whose segment still exists, of a table with the column `segment`."""
    return table.filter(pc.invert(_tombstoned(table, shard))) if shard.tombstoned else table


def _stale(table: pa.Table, shard: Shard) -> set[int]:
    """Return the positions of rows whose segment vanished."""
    return set(pc.indices_nonzero(_tombstoned(table, shard)).to_pylist()) if shard.tombstoned else set()


def _tombstoned(table: pa.Table, shard: Shard) -> pa.ChunkedArray:
    return pc.is_in(table["segment"], value_set=pa.array(sorted(shard.tombstoned)))


def _duplicates(tables: Sequence[pa.Table], dropped: Sequence[set[int]]) -> tuple[list[set[int]], list[dict[str, Any]]]:
    """Find rows that repeat the id of an earlier live row, in shard and row order.

    Returns
    -------
    tuple[list[set[int]], list[dict]]
        Per table the positions to leave out, and the quarantine rows that name both locations.
    """
    ids = pa.chunked_array(
        [chunk for t in tables for chunk in t["image_id"].cast(pa.string()).chunks] or [pa.array([], pa.string())]
    )
    counted = pc.value_counts(ids)
    several = counted.filter(pc.greater(counted.field("counts"), 1)).field("values")
    repeated: list[set[int]] = [set() for _ in tables]
    rejected: list[dict[str, Any]] = []
    first: dict[str, str] = {}
    for number, table in enumerate(tables if len(several) else ()):
        mask = pc.is_in(table["image_id"].cast(pa.string()), value_set=several)
        for position in pc.indices_nonzero(mask).to_pylist():
            if position in dropped[number]:
                continue
            row = table.slice(position, 1).to_pylist()[0]
            key, uri = str(row["image_id"]), row["uri"]
            if key not in first:
                first[key] = uri
                continue
            repeated[number].add(position)
            message = f"image id {key!r} is at {first[key]} (kept) and again at {uri} (left out); ids must be unique"
            rejected.append(
                {**row, "stage": "publish", "reason": "duplicate_id", "error_type": "InputError", "message": message}
            )
    return repeated, rejected


def _trim(storage: Storage, file: Written, drop: set[int], place: Callable[[str], str], shard: Shard) -> Written:
    """Return a shard's file, or a copy without some rows under a name made of what is left out."""
    if not drop:
        return file
    table = read_table(storage, file.path)
    kept = table.take(pa.array([i for i in range(table.num_rows) if i not in drop], pa.int64()))  # typed: may be empty
    return write_table(storage, place(f"{shard.id}-{digest([file.sha256, sorted(drop)])}"), kept)


def _live_quarantine(storage: Storage, generation: Generation, shard: Shard, entry: LedgerEntry) -> list[str]:
    """Return the file of the shard's rejected live rows, an empty list when there are none."""
    if not entry.quarantine:
        return []
    gone = _stale(read_table(storage, entry.quarantine.path, ("segment",)), shard) if shard.tombstoned else set()
    file = _trim(storage, entry.quarantine, gone, lambda name: generation.quarantine(f"trimmed/{name}"), shard)
    return [file.path] if file.rows else []


def _quarantine(
    storage: Storage, generation: Generation, rejected: list[dict[str, Any]], tables: Sequence[pa.Table]
) -> list[str]:
    """Write the repeated rows; their ids keep their type, unless the input's files differ in it."""
    if not rejected:
        return []
    names = [{**row, "image_id": str(row["image_id"])} for row in rejected]
    path = generation.quarantine(f"duplicates-{digest(names)}")
    types = {table["image_id"].type for table in tables}
    one_type = len(types) == 1
    schema = quarantine_schema(types.pop() if one_type else pa.string())
    write_table(storage, path, table_of(rejected if one_type else names, schema))
    return [path]
