"""`nightshift labels`: the current view, shown or copied into one file."""

import json
from pathlib import Path
from typing import Any

from jobs.config import Config
from jobs.console import say
from pipeline.errors import UsageError
from pipeline.publication import View, read_view
from pipeline.storage import Storage, join
from pipeline.tables import read_table

WRITERS = (".parquet", ".csv", ".jsonl")


def show(config: Config, to: str | None, limit: int, as_json: bool) -> int:
    """Print the view's first rows and its files, or copy all of it into `to`."""
    store = config.open_store()
    view = read_view(store, config.dataset)
    if view is None:
        raise UsageError(f"nothing is published for data set {config.dataset!r} yet; run `nightshift label CONFIG`")
    if to:
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
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    write = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}[target.suffix]
    try:
        write((read_table(store, path) for path in view.files), temporary)
        temporary.replace(target)
    except OSError as error:
        raise UsageError(f"--to {target}: {error.strerror}; choose a place that can be written") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_parquet(tables: Any, path: Path) -> None:
    import pyarrow.parquet as pq

    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()


def _write_csv(tables: Any, path: Path) -> None:
    """Write flat columns; the best classes become JSON text. A leading = + - @ gets a quote: spreadsheets run formulas."""
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for table in tables:
            writer = writer or csv.DictWriter(file, table.column_names)
            if file.tell() == 0:
                writer.writeheader()
            for row in table.to_pylist():
                writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _write_jsonl(tables: Any, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in tables:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
