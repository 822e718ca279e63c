"""What a labelling run has done so far and what it waited for, in words: so that one knows what to buy."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from pipeline.counts import Counts
from pipeline.ledger import LedgerEntry

# Where a labeller's time goes, as the ledger's `seconds` name it, and what would shorten it.
ADVICE = {
    "storage": "reading the input: a store that is nearer or faster, or more labellers, would help most",
    "decode": "decoding images: more CPUs would help most",
    "engine": "the model: more CPUs, a GPU or a smaller model would help most",
    "write": "writing the results: a store that is nearer or faster, or larger input.shard_images, would help most",
}


ENGINE = ("engine", "precision", "device", "decoding")


class Tally:
    """Sums over the shards that were committed."""

    def __init__(self, retried: Counter[str]) -> None:
        self.counts, self.retried = Counts(), retried
        self._seconds = defaultdict[str, float](float)
        self._engines: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, entry: LedgerEntry, counts: Counts) -> None:
        """Take in a committed shard and what of it is live."""
        self.counts += counts
        used = {name: entry.used.get(name) for name in ENGINE}
        engine = self._engines.setdefault(
            tuple(used.values()), {**used, "agreement": entry.used.get("agreement"), "images": 0}
        )
        engine["images"] += counts.images_in
        for stage, seconds in entry.seconds.items():
            self._seconds[stage] += seconds

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the labellers' time by stage, the largest first; empty before there is any."""
        total = sum(self._seconds.values())
        ranked = sorted(self._seconds.items(), key=lambda item: -item[1])
        return {stage: seconds / total for stage, seconds in ranked} if total else {}

    @property
    def words(self) -> str:
        """The part of the progress line behind the rate; empty before the first shard."""
        retries = sum(self.retried.values())
        parts = [f"{self.counts.quarantined:,} quarantined"] if self.counts.quarantined else []
        parts += [f"{retries:,} {'retry' if retries == 1 else 'retries'}"] if retries else []
        parts += [" ".join(f"{stage} {share:.0%}" for stage, share in self.shares.items())] if self.shares else []
        return ", ".join(parts)

    @property
    def limit(self) -> str:
        """Say in a sentence what most of the labellers' time went into; empty when nothing was labelled."""
        return limit(self.shares)

    @property
    def retries(self) -> dict[str, int]:
        """Retries by kind of error."""
        return dict(self.retried)

    @property
    def engines(self) -> list[dict[str, Any]]:
        """What labelled, the one with most images first, with its agreement with the reference."""
        return sorted(self._engines.values(), key=lambda engine: -engine["images"])


def limit(shares: Mapping[str, float]) -> str:
    """Say in a sentence what the largest share of the labellers' time went into; empty when there is none."""
    stage = max(shares, key=lambda stage: shares[stage], default="")
    return f"{shares[stage]:.0%} of the labellers' time went into {ADVICE[stage]}" if stage in ADVICE else ""
