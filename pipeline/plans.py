"""Plan snapshots in the store: parts first, then `plan.json`, which makes snapshot n complete.

The parts of a snapshot that was never completed count as history: what was dispatched from them keeps its shards.
"""

import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import layout
from pipeline.documents import Document, encode, read_document
from pipeline.shards import Segment, Shard, shards_from_table, shards_to_table
from pipeline.storage import Storage
from pipeline.tables import read_table, write_table

SEGMENTS_PER_PART = 100_000


@dataclass(frozen=True)
class Changes:
    """How the images of one plan became those of the next: known + new - deleted are there now.

    Of a table that was written again as many images are changed as both versions have rows; the others are new or
    deleted. Files that cannot be read now count as nothing.
    """

    new: int
    changed: int
    deleted: int


def changes(before: Iterable[Shard], after: Iterable[Shard], unreadable: Collection[str] = ()) -> Changes:
    """Compare the live files of two plans; `unreadable` are paths that may be there and are not in `after`."""
    old, now = _files(before), _files(after)
    none: tuple[Segment | None, int] = (None, 0)
    return Changes(
        new=sum(max(0, rows - old.get(path, none)[1]) for path, (_, rows) in now.items()),
        changed=sum(
            min(rows, now[path][1])
            for path, (one, rows) in old.items()
            if path in now and one.file != now[path][0].file
        ),
        deleted=sum(max(0, n - now.get(path, none)[1]) for path, (_, n) in old.items() if path not in unreadable),
    )


def _files(shards: Iterable[Shard]) -> dict[str, tuple[Segment, int]]:
    """Return a segment and the rows of every live file by path; a plan holds one version of a file."""
    found: dict[str, tuple[Segment, int]] = {}
    for segment in (segment for shard in shards for segment in shard.live):
        before = found.get(segment.path)
        found[segment.path] = (segment, segment.num_rows + (before[1] if before else 0))
    return found


@dataclass(frozen=True)
class Plan:
    """A complete snapshot: the live shards of a data set, and what was left aside."""

    dataset: str
    n: int
    shards: tuple[Shard, ...]
    failed_files: tuple[dict[str, str], ...] = ()
    ignored_files: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """Images that exist now."""
        return sum(shard.num_images for shard in self.shards)


def read_plan(storage: Storage, dataset: str) -> Plan | None:
    """Return the newest complete snapshot, None when there is none."""
    complete, _ = _snapshots(storage, dataset)
    if not complete:
        return None
    n = max(complete)
    folder = f"{layout.plans(dataset)}/{n}"
    document = read_document(storage, f"{folder}/plan.json")
    shards = [s for part in document["parts"] for s in shards_from_table(read_table(storage, f"{folder}/{part}"))]
    return Plan(
        dataset,
        n,
        tuple(shards),
        tuple(document["failed_files"]),
        document["ignored_files"],
        document.get("details", {}),
    )


def read_unfinished(storage: Storage, dataset: str) -> list[Shard]:
    """Return the shards of snapshots newer than the newest complete one, those of different planners side by side."""
    complete, parts = _snapshots(storage, dataset)
    last = max(complete, default=0)
    shards = [
        shard
        for n in sorted(parts)
        if n > last
        for part in sorted(parts[n])
        for shard in shards_from_table(read_table(storage, part))
    ]
    return list({shard.id: shard for shard in shards}.values())


class PartWriter:
    """Writes the parts of one snapshot, in their order; what other planners write under its number stands beside them."""

    def __init__(self, storage: Storage, dataset: str, n: int) -> None:
        self._storage, self._folder = storage, f"{layout.plans(dataset)}/{n}"
        self._token, self._written = uuid.uuid4().hex[:8], 0

    def write(self, shards: Sequence[Shard]) -> str:
        """Write a part and return its name: from here on its shards are history, also if the snapshot is never completed."""
        name = f"part-{self._written:05d}-{self._token}.parquet"
        write_table(self._storage, f"{self._folder}/{name}", shards_to_table(shards))
        self._written += 1
        return name


def write_plan(storage: Storage, plan: Plan, created_at: str) -> None:
    """Write a snapshot under its number; AlreadyExistsError when another planner completed that number first."""
    writer = PartWriter(storage, plan.dataset, plan.n)
    parts = [writer.write(shards) for shards in _parts(plan.shards)]
    document: Document = {
        "dataset": plan.dataset,
        "n": plan.n,
        "created_at": created_at,
        "parts": parts,
        "num_shards": len(plan.shards),
        "num_images": plan.num_images,
        "failed_files": list(plan.failed_files),
        "ignored_files": plan.ignored_files,
        "details": plan.details,
    }
    storage.create(f"{layout.plans(plan.dataset)}/{plan.n}/plan.json", encode(document))


def _parts(shards: Sequence[Shard]) -> list[list[Shard]]:
    parts: list[list[Shard]] = [[]]
    size = 0
    for shard in shards:
        if size >= SEGMENTS_PER_PART:
            parts.append([])
            size = 0
        parts[-1].append(shard)
        size += len(shard.segments)
    return parts


def _snapshots(storage: Storage, dataset: str) -> tuple[set[int], dict[int, list[str]]]:
    """Return the complete numbers, and the part paths of every number."""
    complete: set[int] = set()
    parts: dict[int, list[str]] = {}
    for entry in storage.list(layout.plans(dataset)):
        number, _, name = entry.path.removeprefix(f"{layout.plans(dataset)}/").partition("/")
        if not number.isdigit():
            continue
        if name == "plan.json":
            complete.add(int(number))
        elif name.endswith(".parquet"):
            parts.setdefault(int(number), []).append(entry.path)
    return complete, parts
