"""`nightshift labels`: the current view, shown or copied into one file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.config import Config
from jobs.console import say
from pipeline.errors import UsageError
from pipeline.publication import View, read_view
from pipeline.schema import prediction_schema
from pipeline.storage import Storage, join, scheme_of
from pipeline.tables import read_schema, read_table

WRITERS = (".parquet", ".csv", ".jsonl")
ROWS_AT_ONCE = 10_000  # as Python objects


def show(config: Config, to: str | None, limit: int, as_json: bool) -> int:
    """Print the view's first rows and its files, or copy all of it into `to`."""
    store = config.open_store()
    view = read_view(store, config.dataset)
    if view is None:
        raise UsageError(f"nothing is published for data set {config.dataset!r} yet; run `nightshift label CONFIG`")
    if to:
        if scheme_of(to) != "file":
            raise UsageError(
                f"--to {to}: copies go to local files only; the view's own files lie in {store.url} already"
            )
        _copy(store, view, Path(to))
        say(f"{view.counts.labelled:,} labels of view {view.n} copied to {to}")
    elif as_json:
        print(
            json.dumps({**view.document, "files": [join(store.url, path) for path in view.files]}, ensure_ascii=False)
        )
    else:
        _print(store, view, limit)
    return 0


def _print(store: Storage, view: View, limit: int) -> None:
    shown = 0
    for path in view.files:
        wanted = ("image_id", "labels" if "labels" in read_schema(store, path).names else "label", "confidence")
        for row in read_table(store, path, wanted).slice(0, limit - shown).to_pylist():
            said = row["label"] if "label" in row else ", ".join(row["labels"]) or "-"
            print(f"{row['image_id']}\t{said}\t{row['confidence']:.4f}")
            shown += 1
        if shown >= limit:
            break
    document = view.document
    say(
        f"view {view.n} of {document['dataset']}: {view.counts.labelled:,} labels of {document['model']}, {document['published_at']}"
    )
    for path in view.files:
        say(f"  {join(store.url, path)}")


def _copy(store: Storage, view: View, target: Path) -> None:
    """Write the view file by file, so that memory holds one at a time; the target appears when it is whole."""
    if target.suffix not in WRITERS:
        raise UsageError(
            f"--to {target}: unknown format {target.suffix!r}; use a name that ends in {', '.join(WRITERS)}"
        )
    temporary = target.with_name(f".{target.name}.tmp")
    write = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}[target.suffix]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(store, view, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--to {target}: {error.strerror}; choose a place that can be written") from error


def _tables(store: Storage, view: View) -> Iterator[pa.Table]:
    """Yield the view's rows, some at a time; for a view without labels the empty table, so that a copy has its columns."""
    if not view.files:
        yield prediction_schema(pa.string()).empty_table()
    for path in view.files:
        table = read_table(store, path)
        yield from (table.slice(first, ROWS_AT_ONCE) for first in range(0, table.num_rows, ROWS_AT_ONCE))


def _columns(store: Storage, view: View) -> pa.Schema:
    """Return all columns of the view: files of another generation, or of other input files, may have others."""
    schemas = [read_schema(store, path) for path in view.files] or [prediction_schema(pa.string())]
    types: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        everywhere = all(field.name in other.names for other in schemas)
        kind = field.type if everywhere else _nullable(field.type)
        known = types.setdefault(field.name, kind)
        if pa.types.is_null(known):
            types[field.name] = kind
        elif known != kind and _nullable(known) == _nullable(kind):  # embeddings of two models
            types[field.name] = _nullable(kind)
        elif known != kind and not pa.types.is_null(kind):
            what = "image ids are" if field.name == "image_id" else f"the column {field.name} is"
            raise UsageError(f"{what} {known} and {kind} in different input files; copy the view into a .csv or .jsonl")
    return pa.schema(list(types.items()), metadata=schemas[0].metadata)


def _nullable(kind: pa.DataType) -> pa.DataType:
    """Return the type for a column in which values are missing: Arrow 25 does not read back a null list of fixed size."""
    return pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind


def _write_parquet(store: Storage, view: View, path: Path) -> None:
    import pyarrow.parquet as pq

    schema = _columns(store, view)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _tables(store, view):
            missing = [name for name in schema.names if name not in table.column_names]
            for name in missing:
                table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
            writer.write_table(table.select(schema.names).cast(schema))


def _write_csv(store: Storage, view: View, path: Path) -> None:
    """Write flat columns; the best classes become JSON text. A leading = + - @ gets a quote: spreadsheets run formulas."""
    import csv

    schemas = [read_schema(store, file) for file in view.files] or [prediction_schema(pa.string())]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for schema in schemas for name in schema.names))
        writer.writeheader()
        for table in _tables(store, view):
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in table.to_pylist())


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_jsonl(store: Storage, view: View, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in _tables(store, view):
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
