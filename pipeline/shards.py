"""Segments, shards and plan snapshots: who is labelled with whom is decided once, by the plan that first saw the data.

A shard is an immutable list of segments and its id is their digest. A segment that vanished is tombstoned, never moved,
so that the work done on its neighbours keeps its address.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby

import pyarrow as pa

from pipeline.documents import digest
from pipeline.partitions import partition_folders


@dataclass(frozen=True, slots=True)  # an input may have millions
class Segment:
    """What can be read alone: rows [first_row, first_row + num_rows) of one version of one file.

    For Parquet the rows are whole row groups; an image file has the one row 0. `file_rows` is the row count of the
    whole file, which tells whether all of it has been planned.
    """

    path: str
    size_bytes: int
    version: str
    first_row: int
    num_rows: int
    file_rows: int

    @property
    def key(self) -> str:
        """Identity in tables: `<path>@<version>-<size>#<first row>`."""
        return f"{self.path}@{self.version}-{self.size_bytes:x}#{self.first_row}"

    @property
    def file(self) -> tuple[str, int, str]:
        """Identity of the file version that it lies in."""
        return self.path, self.size_bytes, self.version

    @property
    def end_row(self) -> int:
        """The first row of the file that comes after it."""
        return self.first_row + self.num_rows


@dataclass(frozen=True)
class Shard:
    """The unit of work and of commit."""

    segments: tuple[Segment, ...]
    tombstoned: frozenset[str] = frozenset()
    id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", digest([[*s.file, s.first_row, s.num_rows] for s in self.segments]))

    @property
    def live(self) -> tuple[Segment, ...]:
        """Segments whose file version still exists."""
        if not self.tombstoned:
            return self.segments
        return tuple(segment for segment in self.segments if segment.key not in self.tombstoned)

    @property
    def num_images(self) -> int:
        """Rows of the live segments."""
        return sum(segment.num_rows for segment in self.live)


def make_shards(segments: Iterable[Segment], shard_images: int) -> Iterator[Shard]:
    """Pack segments in their order into shards of at most `shard_images` images (more only for one large segment).

    No shard spans two Hive partitions, so that a run over some partitions is a run over some shards.
    """
    current: list[Segment] = []
    num_images, partition = 0, None
    for segment in segments:
        before, partition = partition, partition_folders(segment.path)
        if current and (num_images + segment.num_rows > shard_images or partition != before):
            yield Shard(tuple(current))
            current, num_images = [], 0
        current.append(segment)
        num_images += segment.num_rows
    if current:
        yield Shard(tuple(current))


def update_shards(history: Iterable[Shard], files: set[tuple[str, int, str]]) -> list[Shard]:
    """Tombstone the segments whose file version is not among `files`; drop shards with nothing left.

    Of two shards that share a live row the first stays and the other is dropped whole: two planners that were both
    stopped halfway may have packed the same rows differently, and no row may lie in two shards. What the dropped one
    held besides counts as not planned.
    """
    kept: list[Shard] = []
    taken: dict[tuple[str, int, str], list[tuple[int, int]]] = defaultdict(list)
    for old in history:
        gone = {s.key for s in old.segments if s.file not in files}
        shard = old if gone <= old.tombstoned else Shard(old.segments, old.tombstoned | gone)
        if shard.live and not any(_overlaps(taken[segment.file], segment) for segment in shard.live):
            kept.append(shard)
            for segment in shard.live:
                insort(taken[segment.file], (segment.first_row, segment.end_row))
    return kept


def unplanned_rows(segments: Iterable[Segment], shards: Iterable[Shard]) -> Iterator[Segment]:
    """Yield the parts of segments whose rows no shard holds, also where the file was cut in other places before."""
    taken: dict[tuple[str, int, str], list[tuple[int, int]]] = defaultdict(list)
    for held in (segment for shard in shards for segment in shard.live):
        insort(taken[held.file], (held.first_row, held.end_row))
    for segment in segments:
        first, end = segment.first_row, segment.end_row
        for begin, after in [*taken.get(segment.file, ()), (end, end)]:
            if first < min(begin, end):
                yield replace(segment, first_row=first, num_rows=min(begin, end) - first)
            first = max(first, after)


def _overlaps(taken: list[tuple[int, int]], segment: Segment) -> bool:
    """Say whether a segment has a row in one of the disjoint, sorted intervals [first, end) of its file."""
    index = bisect_left(taken, (segment.end_row,))
    return index > 0 and taken[index - 1][1] > segment.first_row


ROWS_AT_ONCE = 10_000  # of a plan, as Python objects
PLAN_SCHEMA = pa.schema(
    [
        ("shard_id", pa.string()),
        ("path", pa.string()),
        ("size_bytes", pa.int64()),
        ("version", pa.string()),
        ("first_row", pa.int64()),
        ("num_rows", pa.int64()),
        ("file_rows", pa.int64()),
        ("tombstoned", pa.bool_()),
    ],
    metadata={"nightshift.schema": "plan/1"},
)


def shards_to_table(shards: Iterable[Shard]) -> pa.Table:
    """Return one row per segment, the segments of a shard next to each other."""
    columns = _columns(list(shards))
    arrays = [pa.array(values, kind.type) for values, kind in zip(columns, PLAN_SCHEMA, strict=True)]
    return pa.table(arrays, PLAN_SCHEMA)


def _columns(shards: Sequence[Shard]) -> Iterator[list[object]]:
    """Yield the values of one column after the other: as Python objects they take much more room than packed."""
    yield [shard.id for shard in shards for _ in shard.segments]
    for name in PLAN_SCHEMA.names[1:-1]:
        yield [getattr(segment, name) for shard in shards for segment in shard.segments]
    yield [bool(shard.tombstoned) and s.key in shard.tombstoned for shard in shards for s in shard.segments]


def shards_from_table(table: pa.Table) -> list[Shard]:
    """Undo `shards_to_table`."""
    shards = []
    batches = (zip(*(c.to_pylist() for c in batch.columns), strict=True) for batch in table.to_batches(ROWS_AT_ONCE))
    for _, group in groupby(chain.from_iterable(batches), key=lambda row: row[0]):
        rows = list(group)
        segments = tuple(Segment(*row[1:7]) for row in rows)
        dead = frozenset(segment.key for segment, row in zip(segments, rows, strict=True) if row[7])
        shards.append(Shard(segments, dead))
    return shards
