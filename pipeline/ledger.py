"""The ledger: one JSON per shard and generation, written last. It is the commit marker and the shard's report in one object.

Without the entry nothing is done, whatever files lie around; with it, the files it names are the shard's labels. A run
ends by copying all entries into one roll-up, so that the next one reads what was done by one listing and one read.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.counts import Counts
from pipeline.documents import Document, encode, read_document
from pipeline.errors import SourceChangedError
from pipeline.layout import Generation
from pipeline.rollup import read_rollup, write_rollup
from pipeline.shards import Shard
from pipeline.storage import Entry, Storage
from pipeline.tables import Written

READS_AT_ONCE = 16


@dataclass(frozen=True)
class LedgerEntry:
    """What one committed attempt at a shard did.

    `segments` holds [images in, labelled, quarantined] by segment key; `classes` the labelled images by class index;
    `confidences` a histogram of the top probability in 20 equal bins of [0, 1]; `seconds` the time by stage;
    `used` the engine, precision, processor and library versions. `stored` is the object that holds it, and `rolled_up`
    says that a roll-up holds a copy; both belong to a reader or writer, not to the entry.
    """

    shard_id: str
    run_id: str
    segments: dict[str, list[int]]
    labels: Written
    quarantine: Written | None
    reasons: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    confidences: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)
    stored: Entry | None = field(default=None, compare=False)
    rolled_up: bool = field(default=False, compare=False)

    @property
    def counts(self) -> Counts:
        """All rows of the attempt."""
        return sum((Counts(*row) for row in self.segments.values()), Counts())

    def live_counts(self, shard: Shard) -> Counts:
        """Rows of the segments that still exist."""
        return sum((Counts(*self.segments[s.key]) for s in shard.live if s.key in self.segments), Counts())

    def covers(self, shard: Shard) -> bool:
        """Say whether every live segment of the shard has been labelled."""
        return all(segment.key in self.segments for segment in shard.live)


def commit(storage: Storage, generation: Generation, entry: LedgerEntry) -> LedgerEntry:
    """Write the entry: from here on the shard is done. Return it with the object that holds it."""
    return replace(entry, stored=storage.write(generation.ledger(entry.shard_id), encode(_document(entry))))


def read_ledger(storage: Storage, generation: Generation, shards: Iterable[Shard]) -> dict[str, LedgerEntry]:
    """Return the entries of those shards that are done, by shard id: one listing, the roll-up, and what it lacks."""
    wanted = {shard.id: shard for shard in shards}
    listed = {entry.path: entry for entry in storage.list(generation.ledger())}
    rolled_up = generation.rollup() in listed
    listed = {path: listed[path] for path in map(generation.ledger, wanted) if path in listed}
    found: dict[str, LedgerEntry] = {}
    if rolled_up and listed:
        for stored, document in read_rollup(storage, generation.rollup(), listed):
            found[stored.path] = _decoded(json.loads(document), stored, rolled_up=True)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        entries = pool.map(lambda stored: found.get(stored.path) or _read(storage, stored), listed.values())
        return {entry.shard_id: entry for entry in entries if entry.covers(wanted[entry.shard_id])}


def roll_up(storage: Storage, generation: Generation, entries: Mapping[str, LedgerEntry]) -> None:
    """Copy all entries into the generation's roll-up, unless it holds them already."""
    if not all(entry.rolled_up for entry in entries.values()):
        # Without indentation Python's JSON is several times faster, and nobody looks into a roll-up.
        documents = ((e.stored, json.dumps(_document(e)).encode()) for e in entries.values() if e.stored)
        write_rollup(storage, generation.rollup(), documents)


def mismatched(storage: Storage, generation: Generation, entries: dict[str, LedgerEntry]) -> list[str]:
    """Return the shards with a file that is not what the ledger says, by one listing of each kind: gone, or of another size."""
    kinds = ("labels", "quarantine")
    sizes = {found.path: found.size_bytes for kind in kinds for found in storage.list(generation.folder(kind))}
    return [
        shard_id
        for shard_id, entry in entries.items()
        if any(sizes.get(file.path) != file.size_bytes for file in (entry.labels, entry.quarantine) if file)
    ]


def _read(storage: Storage, listed: Entry) -> LedgerEntry:
    """Read one entry as it is now; what another run wrote since the listing is of a version that nobody knows."""
    try:
        return _decoded(read_document(storage, listed.path, listed.version), listed)
    except SourceChangedError:
        return _decoded(read_document(storage, listed.path), None)


def _document(entry: LedgerEntry) -> Document:
    shallow = {name: value for name, value in vars(entry).items() if name not in ("stored", "rolled_up")}
    quarantine = entry.quarantine.to_json() if entry.quarantine else None
    return {**shallow, "labels": entry.labels.to_json(), "quarantine": quarantine}


def _decoded(document: Document, stored: Entry | None, rolled_up: bool = False) -> LedgerEntry:
    quarantine = document.pop("quarantine")
    return LedgerEntry(
        **{**document, "labels": Written(**document["labels"])},
        quarantine=Written(**quarantine) if quarantine else None,
        stored=stored,
        rolled_up=rolled_up,
    )
