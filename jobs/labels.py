"""`nightshift labels`: the current view, shown or copied into one file."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.config import Config
from jobs.console import say
from pipeline.errors import UsageError
from pipeline.publication import View, read_view
from pipeline.schema import prediction_schema
from pipeline.storage import Storage, join, scheme_of
from pipeline.tables import read_table

WRITERS = (".parquet", ".csv", ".jsonl")


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
        for row in read_table(store, path, ("image_id", "label", "confidence")).slice(0, limit - shown).to_pylist():
            print(f"{row['image_id']}\t{row['label']}\t{row['confidence']:.4f}")
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
    """Write the view file by file, so that memory holds one shard at a time; the target appears when it is whole."""
    if target.suffix not in WRITERS:
        raise UsageError(
            f"--to {target}: unknown format {target.suffix!r}; use a name that ends in {', '.join(WRITERS)}"
        )
    temporary = target.with_name(f".{target.name}.tmp")
    write = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}[target.suffix]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(_tables(store, view), temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"--to {target}: {error.strerror}; choose a place that can be written") from error


def _tables(store: Storage, view: View) -> Iterator[pa.Table]:
    """Yield the view's tables; for a view without labels the empty one, so that a copy has its columns all the same."""
    if not view.files:
        yield prediction_schema(pa.string()).empty_table()
    for path in view.files:
        yield read_table(store, path)


def _write_parquet(tables: Iterator[pa.Table], path: Path) -> None:
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for table in chain([first], tables):
            if table.schema != first.schema:
                raise UsageError(_other_types(first.schema, table.schema))
            writer.write_table(table)


def _other_types(first: pa.Schema, other: pa.Schema) -> str:
    """Say which column one Parquet file cannot hold: ids, and columns passed through, keep the types of the input."""
    for name in first.names:
        index = other.get_field_index(name)
        if index >= 0 and other.field(index).type != first.field(name).type:
            kinds = f"{first.field(name).type} and {other.field(index).type}"
            what = "image ids are" if name == "image_id" else f"column {name!r} is"
            return f"{what} {kinds} in different input files; copy the view into a .csv or .jsonl"
    return f"the view's files have other columns: {', '.join(first.names)} and {', '.join(other.names)}"


def _write_csv(tables: Iterator[pa.Table], path: Path) -> None:
    """Write flat columns; the best classes become JSON text. A leading = + - @ gets a quote: spreadsheets run formulas."""
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        first = next(tables)
        writer = csv.DictWriter(file, first.column_names)
        writer.writeheader()
        for table in chain([first], tables):
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in table.to_pylist())


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_jsonl(tables: Iterator[pa.Table], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())
