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
from pipeline.errors import AlreadyExistsError, NotFoundError
from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry
from pipeline.plans import Plan
from pipeline.schema import quarantine_schema, table_of
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tables import Written, read_table, write_table

READS_AT_ONCE = 8

Part = tuple[Generation, Mapping[str, LedgerEntry]]


@dataclass(frozen=True)
class Chosen:
    """A shard with the generation and the entry that the view takes its labels from."""

    shard: Shard
    generation: Generation
    entry: LedgerEntry


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
        files = self.document["files"]
        return {shard_id for file in files for shard_id in file["shard_ids"]} | set(
            self.document["shards_without_labels"]
        )


def read_view(storage: Storage, dataset: str) -> View | None:
    """Return the current view, None before the first."""
    found = newest(storage, layout.published(dataset))
    return View(*found) if found else None


def publish(storage: Storage, parts: Sequence[Part], plan: Plan, about: Document) -> tuple[View, bool]:
    """Make the live rows of the plan's committed shards the current view.

    Parameters
    ----------
    parts : Sequence[Part]
        Generations with their entries by shard id, the newest first: a shard is taken from the first part that has it.
    about : Document
        What else the view's document says: model (of the first part), run id, time.

    Returns
    -------
    tuple[View, bool]
        The current view, and whether it is a new one: an identical list is not published twice, and a view of a
        newer plan is never replaced by one of an older plan.
    """
    chosen = choose(parts, plan)
    content = _content(chosen, parts)
    while True:
        current = read_view(storage, plan.dataset)
        if current and (current.document["plan"] > plan.n or _says(storage, current, content)):
            return current, False
        document = {**about, **_build(storage, parts[0][0], plan, chosen), "content": content}
        try:
            number = advance(storage, layout.published(plan.dataset), document, current.n if current else 0)
        except AlreadyExistsError:
            continue  # another run published meanwhile: look at what it wrote
        return View(number, {**document, "n": number}), True


def choose(parts: Sequence[Part], plan: Plan) -> list[Chosen]:
    """Return the plan's committed shards in its order, each with the entry of the first part that has it."""
    found = []
    for shard in plan.shards:
        generation, ledger = next((part for part in parts if shard.id in part[1]), (None, {}))
        if generation is not None:
            found.append(Chosen(shard, generation, ledger[shard.id]))
    return found


def _says(storage: Storage, view: View, content: str) -> bool:
    """Say whether a view publishes this content, with all the copies that were made for it."""
    if view.document["content"] != content:
        return False
    try:
        return all(storage.stat(path) for path in view.files if "/trimmed/" in path)
    except NotFoundError:
        return False


def _content(chosen: Sequence[Chosen], parts: Sequence[Part]) -> str:
    rows = [
        [c.generation.name, c.shard.id, c.entry.labels.path, c.entry.labels.sha256, sorted(c.shard.tombstoned)]
        for c in chosen
    ]
    return digest([parts[0][0].name, sorted(rows)])


def _build(storage: Storage, newest: Generation, plan: Plan, chosen: Sequence[Chosen]) -> Document:
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        columns = ("image_id", "uri", "segment")
        tables = list(pool.map(lambda c: read_table(storage, c.entry.labels.path, columns), chosen))
    stale = [_stale(table, c.shard) for table, c in zip(tables, chosen, strict=True)]
    repeated, rejected = _duplicates(tables, stale)
    files, bad = [], []
    for c, gone, again in zip(chosen, stale, repeated, strict=True):
        written = _trim(storage, c.entry.labels, gone | again, c, "labels")
        files.append(
            {
                "shard_ids": [c.shard.id],
                "generation": c.generation.name,
                "model": c.generation.model,
                **written.to_json(),
            }
        )
        bad += _live_quarantine(storage, c)
    counts = sum((c.entry.live_counts(c.shard) for c in chosen), Counts())
    counts += Counts(0, -len(rejected), len(rejected))
    counts.check(f"data set {plan.dataset}, plan {plan.n}")
    return {
        "dataset": plan.dataset,
        "generation": newest.name,
        "fingerprint": newest.fingerprint,
        "plan": plan.n,
        "counts": {"images_in": counts.images_in, "labelled": counts.labelled, "quarantined": counts.quarantined},
        "files": [file for file in files if file["rows"]],
        "shards_without_labels": [shard_id for file in files if not file["rows"] for shard_id in file["shard_ids"]],
        "quarantine_files": bad + _quarantine(storage, newest, rejected, tables),
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


def _trim(storage: Storage, file: Written, drop: set[int], chosen: Chosen, kind: str) -> Written:
    """Return a shard's file, or a copy without some rows under a name made of what is left out."""
    if not drop:
        return file
    table = read_table(storage, file.path)
    kept = table.take(pa.array([i for i in range(table.num_rows) if i not in drop], pa.int64()))  # typed: may be empty
    name = f"{chosen.shard.id}-{digest([file.sha256, sorted(drop)])}"
    return write_table(storage, chosen.generation.copy(kind, "trimmed", name), kept)


def _live_quarantine(storage: Storage, chosen: Chosen) -> list[str]:
    """Return the file of the shard's rejected live rows, an empty list when there are none."""
    shard, bad = chosen.shard, chosen.entry.quarantine
    if not bad:
        return []
    gone = _stale(read_table(storage, bad.path, ("segment",)), shard) if shard.tombstoned else set()
    file = _trim(storage, bad, gone, chosen, "quarantine")
    return [file.path] if file.rows else []


def _quarantine(
    storage: Storage, generation: Generation, rejected: list[dict[str, Any]], tables: Sequence[pa.Table]
) -> list[str]:
    """Write the repeated rows; their ids keep their type, unless the input's files differ in it."""
    if not rejected:
        return []
    names = [{**row, "image_id": str(row["image_id"])} for row in rejected]
    path = generation.copy("quarantine", "duplicates", digest(names))
    types = {table["image_id"].type for table in tables}
    one_type = len(types) == 1
    schema = quarantine_schema(types.pop() if one_type else pa.string())
    write_table(storage, path, table_of(rejected if one_type else names, schema))
    return [path]
