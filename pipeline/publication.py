"""The current view: a published list of files, never a glob. Written last, create-only, so readers see one whole night.

A file with stale rows (their input vanished) or with a second row of an image id is listed as a trimmed copy:
labels are copied, never computed again.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import layout
from pipeline.counts import Counts
from pipeline.documents import Document, advance, digest, newest
from pipeline.errors import AlreadyExistsError
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry
from pipeline.plans import Plan
from pipeline.schema import quarantine_schema
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
        """Shards whose labels it lists."""
        return {file["shard_id"] for file in self.document["files"]}


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
        if current and (current.document["content"] == content or current.document["plan"] > plan.n):
            return current, False
        document = {**about, **_build(storage, generation, plan, ledger), "content": content}
        try:
            number = advance(storage, layout.published(plan.dataset), document, current.n if current else 0)
        except AlreadyExistsError:
            continue  # another run published meanwhile: look at what it wrote
        return View(number, {**document, "n": number}), True


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
    stale = [_rows_of(table, shard.tombstoned) for table, shard in zip(tables, shards, strict=True)]
    repeated, rejected = _duplicates(tables, stale)
    files = []
    for shard, entry, gone, again in zip(shards, entries, stale, repeated, strict=True):
        written = _trim(storage, generation, entry, gone | again)
        files.append({"shard_id": shard.id, **written.to_json()})
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
        "quarantine_files": [e.quarantine.path for e in entries if e.quarantine]
        + _quarantine(storage, generation, rejected),
        "duplicates": len(rejected),
    }


def _rows_of(table: pa.Table, segments: frozenset[str]) -> set[int]:
    """Return the positions of rows that were read from these segments."""
    if not segments:
        return set()
    mask = pc.is_in(table["segment"], value_set=pa.array(sorted(segments)))
    return set(pc.indices_nonzero(mask).to_pylist())


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


def _trim(storage: Storage, generation: Generation, entry: LedgerEntry, drop: set[int]) -> Written:
    """Return the shard's label file, or a copy without some rows under a name made of what is left out."""
    if not drop:
        return entry.labels
    path = generation.trimmed(f"{entry.shard_id}-{digest([entry.labels.sha256, sorted(drop)])}")
    table = read_table(storage, entry.labels.path)
    return write_table(storage, path, table.take([i for i in range(table.num_rows) if i not in drop]))


def _quarantine(storage: Storage, generation: Generation, rejected: list[dict[str, Any]]) -> list[str]:
    if not rejected:
        return []
    rows = [{**row, "image_id": str(row["image_id"])} for row in rejected]
    path = generation.quarantine(f"duplicates-{digest(rows)}")
    write_table(storage, path, pa.Table.from_pylist(rows, schema=quarantine_schema(pa.string())))
    return [path]
