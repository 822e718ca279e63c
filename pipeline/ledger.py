"""The ledger: one JSON per shard and generation, written last. It is the commit marker and the shard's report in one object.

Without the entry nothing is done, whatever files lie around; with it, the files it names are the shard's labels.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.counts import Counts
from pipeline.documents import encode, read_document
from pipeline.layout import Generation
from pipeline.shards import Shard
from pipeline.storage import Storage
from pipeline.tables import Written

READS_AT_ONCE = 16


@dataclass(frozen=True)
class LedgerEntry:
    """What one committed attempt at a shard did.

    `segments` holds [images in, labelled, quarantined] by segment key; `classes` the labelled images by class index;
    `confidences` a histogram of the top probability in 20 equal bins of [0, 1]; `seconds` the time by stage;
    `used` the engine, precision, processor and library versions.
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


def commit(storage: Storage, generation: Generation, entry: LedgerEntry) -> None:
    """Write the entry: from here on the shard is done."""
    storage.write(generation.ledger(entry.shard_id), encode(asdict(entry)))


def read_ledger(storage: Storage, generation: Generation, shards: Iterable[Shard]) -> dict[str, LedgerEntry]:
    """Return the entries of those shards that are done, by shard id."""
    wanted = {shard.id: shard for shard in shards}
    listed = (entry.path.rsplit("/", 1)[-1].removesuffix(".json") for entry in storage.list(generation.ledger()))
    done = [shard_id for shard_id in listed if shard_id in wanted]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        entries = pool.map(lambda shard_id: _read(storage, generation.ledger(shard_id)), done)
        return {entry.shard_id: entry for entry in entries if entry.covers(wanted[entry.shard_id])}


def mismatched(storage: Storage, generation: Generation, entries: dict[str, LedgerEntry]) -> list[str]:
    """Return the shards with a file that is not what the ledger says, by one listing of each kind: gone, or of another size."""
    kinds = ("labels", "quarantine")
    sizes = {found.path: found.size_bytes for kind in kinds for found in storage.list(generation.folder(kind))}
    return [
        shard_id
        for shard_id, entry in entries.items()
        if any(sizes.get(file.path) != file.size_bytes for file in (entry.labels, entry.quarantine) if file)
    ]


def _read(storage: Storage, path: str) -> LedgerEntry:
    document = read_document(storage, path)
    quarantine = document.pop("quarantine")
    return LedgerEntry(
        **{**document, "labels": Written(**document["labels"])},
        quarantine=Written(**quarantine) if quarantine else None,
    )
