"""The files that a view lists: what labellers wrote, and copies of it without stale rows, or many small ones in one.

Rows are copied, never computed again. Files of about the same size are joined once more than 16 of them have gathered,
which makes one at least 16 times larger: a row is copied as often as the logarithm of its view, not once a night.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.documents import Document, digest
from pipeline.duplicates import Positions
from pipeline.layout import Generation
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tables import Written, create_table, read_table

READS_AT_ONCE = 8
GATHERED = 16  # files of one size that may lie beside each other
ROWS_PER_FILE, BYTES_PER_FILE = 100_000, 128 << 20


@dataclass(frozen=True)
class Held:
    """What a view holds of one shard's file: all rows but those at `stale` (vanished) and `repeated` (their id is taken)."""

    shard: Shard
    generation: Generation
    file: Written
    schema: str
    stale: Positions
    repeated: Positions

    @property
    def rows(self) -> int:
        """Rows that are left."""
        return int(self.file.rows - len(self.stale) - len(self.repeated))

    @cached_property
    def state(self) -> str:
        """What a copy must have been made of, stale rows aside: segments vanish one after the other and never return."""
        return digest([self.file.path, self.file.sha256, self.repeated.tolist()])

    @property
    def content(self) -> str:
        """What its rows are, for the names of copies."""
        return digest([self.state, self.stale.tolist()])


@dataclass(frozen=True)
class Piece:
    """A file with the shards that it holds; `keep` names the segments to take from it, `drop` positions to leave out."""

    held: tuple[Held, ...]
    file: Written
    keep: frozenset[str] | None = None
    drop: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Rows to take."""
        return sum(held.rows for held in self.held)

    @property
    def size_bytes(self) -> int:
        """About what these rows take."""
        return self.file.size_bytes * self.rows // max(1, self.file.rows)

    @property
    def whole(self) -> bool:
        """Whether the file can be listed as it is."""
        return self.keep is None and not self.drop

    def read(self, storage: Storage) -> pa.Table:
        """Return the rows to take."""
        table = read_table(storage, self.file.path)
        if self.keep is not None:
            return table.filter(pc.is_in(table["segment"], value_set=pa.array(sorted(self.keep), pa.string())))
        if self.drop:
            return table.take(pa.array(np.setdiff1d(np.arange(table.num_rows), self.drop)))
        return table


def arrange(
    storage: Storage, kind: str, held: Sequence[Held], previous: Iterable[Document], compact_below: int
) -> list[Document]:
    """Return the entries of the files that hold exactly these rows; what must be copied is written.

    Parameters
    ----------
    kind : str
        `labels` or `quarantine`.
    previous : Iterable[Document]
        Entries of the last view: its copies are listed again as long as they are right.
    compact_below : int
        Rows; smaller files are joined when many have gathered, none when 0.
    """
    order = {h.shard.id: position for position, h in enumerate(held)}
    files: list[Document] = []
    for group in _groups(_pieces(held, previous), compact_below, order):
        file = group[0].file if len(group) == 1 and group[0].whole else _copy(storage, kind, group)
        files.append(_entry(file, [h for piece in group for h in piece.held]))
    return sorted(files, key=lambda entry: order[entry["shard_ids"][0]])


def copies(entries: Iterable[Document]) -> Iterator[Document]:
    """Yield the entries that publishing wrote, which no ledger entry names."""
    return (entry for entry in entries if entry["path"].rsplit("/", 2)[-2] in ("trimmed", "compacted"))


def intact(storage: Storage, entries: Sequence[Document]) -> list[Document]:
    """Return the entries whose copies lie where they were written, by one listing per folder of them."""
    folders = {entry["path"].rpartition("/")[0] for entry in copies(entries)}
    sizes = {found.path: found.size_bytes for folder in sorted(folders) for found in storage.list(folder)}
    lost = {entry["path"] for entry in copies(entries) if sizes.get(entry["path"]) != entry["size_bytes"]}
    return [entry for entry in entries if entry["path"] not in lost]


def _pieces(held: Sequence[Held], previous: Iterable[Document]) -> list[Piece]:
    """Take what the last view's files have right from them, and the rest from the shards' own files."""
    left = {h.shard.id: h for h in held if h.rows}
    pieces = []
    for entry in previous:
        right = [
            left[shard_id]
            for shard_id, state, rows in zip(entry["shard_ids"], entry["states"], entry["shard_rows"], strict=True)
            if shard_id in left and left[shard_id].state == state and left[shard_id].rows <= rows
        ]
        piece = _reused(entry, right)
        if piece:
            pieces.append(piece)
            for h in right:
                del left[h.shard.id]
    return pieces + [Piece((h,), h.file, drop=tuple(np.union1d(h.stale, h.repeated).tolist())) for h in left.values()]


def _reused(entry: Document, right: Sequence[Held]) -> Piece | None:
    """Return a file of the last view as it is, or for a joined one what is left of it; None when it is of no use."""
    file = Written(entry["path"], entry["rows"], entry["size_bytes"], entry["sha256"])
    if sum(h.rows for h in right) == file.rows:
        return Piece(tuple(right), file)
    if not right or len(entry["shard_ids"]) == 1:
        return None
    return Piece(tuple(right), file, keep=frozenset(segment.key for h in right for segment in h.shard.live))


def _groups(pieces: Sequence[Piece], compact_below: int, order: dict[str, int]) -> Iterator[list[Piece]]:
    """Yield the pieces that make one file each: most alone, those to be joined in the plan's order."""
    alike: dict[tuple[str, str], list[Piece]] = defaultdict(list)
    for piece in pieces:
        alike[piece.held[0].generation.name, piece.held[0].schema].append(piece)
    for several in alike.values():
        joined = _gathered([piece for piece in several if _is_small(piece, compact_below)])
        chosen = {id(piece) for piece in joined}
        yield from ([piece] for piece in several if id(piece) not in chosen)
        yield from _cut(sorted(joined, key=lambda piece: order[piece.held[0].shard.id]))


def _is_small(piece: Piece, compact_below: int) -> bool:
    """Say whether a piece may be joined: one of half a full file or more would be copied again and again."""
    return piece.rows < min(compact_below, ROWS_PER_FILE // 2) and piece.size_bytes < BYTES_PER_FILE // 2


def _gathered(small: Sequence[Piece]) -> list[Piece]:
    """Return the pieces of the largest size of which too many have gathered, and all smaller ones with them."""
    tiers: dict[int, list[Piece]] = defaultdict(list)
    for piece in small:
        tiers[_tier(piece.rows)].append(piece)
    full = [tier for tier, pieces in tiers.items() if len(pieces) > GATHERED]
    return [piece for tier, pieces in tiers.items() if full and tier <= max(full) for piece in pieces]


def _tier(rows: int) -> int:
    """Return 0 for 1-15 rows, 1 for 16-255, and so on."""
    return int(log(rows + 0.5, GATHERED))  # half a row: log(4096, 16) may come out just below 3


def _cut(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Cut into as few groups as fit the size of a file, all of them about equal."""
    num_rows, num_bytes = sum(p.rows for p in pieces), sum(p.size_bytes for p in pieces)
    groups = max(ceil(num_rows / ROWS_PER_FILE), ceil(num_bytes / BYTES_PER_FILE), 1)
    share = [p.rows / max(1, num_rows) + p.size_bytes / max(1, num_bytes) for p in pieces]  # sums up to 2
    group: list[Piece] = []
    taken, num = 0.0, 1
    for piece, part in zip(pieces, share, strict=True):
        group.append(piece)
        taken += part
        if taken >= 2 * num / groups and num < groups:
            yield group
            group, num = [], num + 1
    if group:
        yield group


def _copy(storage: Storage, kind: str, group: Sequence[Piece]) -> Written:
    """Write the rows of some pieces, which fit memory, as one file under a name made of what they are."""
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        tables = list(pool.map(lambda piece: piece.read(storage), group))
    held = [h for piece in group for h in piece.held]
    if len(held) == 1:
        reason, name = "trimmed", f"{held[0].shard.id}-{held[0].content}"
    else:
        reason, name = "compacted", digest([[p.file.sha256, [h.content for h in p.held]] for p in group])
    return create_table(storage, held[0].generation.copy(kind, reason, name), pa.concat_tables(tables))


def _entry(file: Written, held: Sequence[Held]) -> dict[str, Any]:
    return {
        **file.to_json(),
        "generation": held[0].generation.name,
        "shard_ids": [h.shard.id for h in held],
        "states": [h.state for h in held],
        "shard_rows": [h.rows for h in held],
    }
