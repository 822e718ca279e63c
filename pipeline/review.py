"""What a person should look at: the labels of a view that the model was least sure of, least confident first.

The ledger's histograms say which files have any, so most are not read. Nobody looks at more than `MOST_ROWS`: of more,
the least confident are kept, which also bounds the memory.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import layout
from pipeline.documents import Document
from pipeline.errors import NotFoundError
from pipeline.ledger import LedgerEntry
from pipeline.publication import View
from pipeline.schema import OWN_COLUMNS, prediction_schema
from pipeline.storage import Storage
from pipeline.tables import read_schema, read_table, write_table

MOST_ROWS = 100_000
COLUMNS = ("image_id", "uri", "label", "labels", "confidence", "top_k", "model")
PLAIN = tuple(name for name in COLUMNS if name != "labels")  # which only those of multi-label models have
BELOW, NUM_BELOW = b"nightshift.review_below", b"nightshift.num_below"


@dataclass(frozen=True)
class Review:
    """A review file: the view's `num_below` labels with a confidence below `below`, or the `rows` least sure of them."""

    path: str
    below: float
    num_below: int
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


def write_review(storage: Storage, view: View, entries: Mapping[str, LedgerEntry], below: float) -> Review:
    """Write the review file of a view, unless it is there with the same bound, and return what it holds.

    Parameters
    ----------
    entries : Mapping[str, LedgerEntry]
        By shard id. The file of a shard without an entry is read, as it may hold anything.
    """
    path = layout.review(view.document["dataset"], view.n)
    if (found := _present(storage, path, below)) is not None:
        return found
    least, num_below = prediction_schema(pa.null()).empty_table().select(PLAIN).replace_schema_metadata(None), 0
    for table in _unsure(storage, _candidates(view, entries, below), below):
        num_below += table.num_rows
        least = _joined([least, table]).sort_by("confidence").slice(0, MOST_ROWS)
    about = {BELOW: repr(below).encode(), NUM_BELOW: str(num_below).encode()}
    write_table(storage, path, least.replace_schema_metadata(about))
    return Review(path, below, num_below, least.num_rows)


def _present(storage: Storage, path: str, below: float) -> Review | None:
    """Return what lies there already; None when there is nothing, or something with another bound."""
    try:
        storage.stat(path)
    except NotFoundError:
        return None
    about = read_schema(storage, path).metadata or {}
    if about.get(BELOW) != repr(below).encode():
        return None
    num_below = int(about[NUM_BELOW])
    return Review(path, below, num_below, min(num_below, MOST_ROWS))


def _candidates(view: View, entries: Mapping[str, LedgerEntry], below: float) -> list[Document]:
    """Return the view's files that may have labels below the bound, as the histograms of their shards say."""
    return [
        file
        for file in view.document["files"]
        if any(
            shard_id not in entries or _has_any(entries[shard_id].confidences, below) for shard_id in file["shard_ids"]
        )
    ]


def _has_any(confidences: Sequence[int], below: float) -> bool:
    return not confidences or sum(confidences[: math.ceil(below * len(confidences))]) > 0


def _unsure(storage: Storage, files: Sequence[Document], below: float) -> Iterator[pa.Table]:
    """Yield the rows below the bound, file by file."""
    for file in files:
        names = read_schema(storage, file["path"]).names
        wanted = [name for name in names if name in COLUMNS or name not in OWN_COLUMNS]
        table = read_table(storage, file["path"], wanted)
        yield table.filter(pc.less(table["confidence"].cast(pa.float64()), below)).replace_schema_metadata(None)


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return all rows; a column whose types do not fit each other becomes text: people read it."""
    names = dict.fromkeys(name for table in tables for name in table.column_names)
    for name in names:
        kinds = [table.schema.field(name) for table in tables if name in table.column_names]
        try:
            pa.unify_schemas([pa.schema([kind]) for kind in kinds], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid):
            tables = [_as_text(table, name) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _as_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    words = [None if value is None else str(value) for value in table[name].to_pylist()]
    return table.set_column(table.column_names.index(name), name, pa.array(words, pa.string()))
