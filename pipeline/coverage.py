"""Which generation answers for which shard: the one that was asked for and, under `label.relabel: new`, those already published.

Under `all` a new generation starts from nothing, beside the published one. Under `new` what is published keeps its labels,
and the new generation answers only for what no generation of the view covers.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.layout import Generation
from pipeline.ledger import LedgerEntry, mismatched, read_ledger
from pipeline.publication import Part, View
from pipeline.shards import Shard
from pipeline.storage import Storage


@dataclass(frozen=True)
class Coverage:
    """Committed shards by the generation that answers for them; no shard stands in two. `kept` holds older generations."""

    asked: Generation
    ledger: Mapping[str, LedgerEntry]
    kept: tuple[Part, ...] = ()

    @property
    def parts(self) -> list[Part]:
        """All generations, the one that was asked for first."""
        return [(self.asked, self.ledger), *self.kept]

    @property
    def entries(self) -> dict[str, LedgerEntry]:
        """All entries by shard id."""
        return {shard_id: entry for _, entries in self.parts for shard_id, entry in entries.items()}

    def without(self, shard_ids: Collection[str]) -> "Coverage":
        """Return what is left when nobody answers for some shards any more."""
        kept = tuple((generation, _left(entries, shard_ids)) for generation, entries in self.kept)
        return replace(self, ledger=_left(self.ledger, shard_ids), kept=kept)

    def extended(self, entries: Mapping[str, LedgerEntry]) -> "Coverage":
        """Return this with newly committed shards of the generation that was asked for."""
        return replace(self, ledger={**self.ledger, **entries})

    def completed(self, earlier: "Coverage") -> "Coverage":
        """Return this with what `earlier`, which it was made from, says of shards that nobody answers for now."""
        done = self.entries
        kept = tuple(
            (generation, {**_left(before, done), **now})
            for (generation, before), (_, now) in zip(earlier.kept, self.kept, strict=True)
        )
        return replace(self, ledger={**_left(earlier.ledger, done), **self.ledger}, kept=kept)

    def mismatched(self, storage: Storage) -> list[str]:
        """Return the shards with a file that is not what the ledger says."""
        return [
            shard_id
            for generation, entries in self.parts
            if entries
            for shard_id in mismatched(storage, generation, dict(entries))
        ]


def read_coverage(
    storage: Storage, asked: Generation, shards: Sequence[Shard], view: View | None, relabel: str
) -> Coverage:
    """Return who answers for which of `shards` at the start of a run; `view` is the current one."""
    ledger = read_ledger(storage, asked, shards)
    if relabel == "all" or view is None:
        return Coverage(asked, ledger)
    names = view.generations
    others = [generation for generation in generations(view) if generation != asked]
    ledgers = {asked: ledger} | {generation: read_ledger(storage, generation, shards) for generation in others}
    chosen: dict[Generation, dict[str, LedgerEntry]] = {generation: {} for generation in ledgers}
    for shard in shards:
        first = [_generation(view, names[shard.id])] if shard.id in names else []
        for generation in [*first, *ledgers]:
            if shard.id in ledgers.get(generation, ()):
                chosen[generation][shard.id] = ledgers[generation][shard.id]
                break
    kept = tuple((generation, chosen[generation]) for generation in others if chosen[generation])
    return Coverage(asked, chosen[asked], kept)


def generations(view: View) -> list[Generation]:
    """Return the generations whose labels a view lists, its own first."""
    return [
        _generation(view, name) for name in dict.fromkeys([view.document["generation"], *view.generations.values()])
    ]


def _generation(view: View, name: str) -> Generation:
    model, _, fingerprint = name.rpartition("@")
    return Generation(view.document["dataset"], model, fingerprint)


def _left(entries: Mapping[str, LedgerEntry], gone: Iterable[str]) -> dict[str, LedgerEntry]:
    gone = set(gone)
    return {shard_id: entry for shard_id, entry in entries.items() if shard_id not in gone}
