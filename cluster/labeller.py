"""Shards over a pool of actors that hold one model each. This process imports no torch; the actors do."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from cluster.dispatch import Failure, dispatch
from cluster.workers import ActorPool, Factory
from pipeline.ledger import LedgerEntry
from pipeline.settings import LabelSettings
from pipeline.shards import Shard
from pipeline.tasks import LabelTask


def label(shards: Sequence[Shard], task: LabelTask) -> Iterator[tuple[Shard, LedgerEntry | Failure]]:
    """Label and commit shards; yield each with its ledger entry, or with why it was given up."""
    return over_shards(shards, partial(_labeller, task), task.label)


def over_shards(shards: Sequence[Shard], factory: Factory, settings: LabelSettings) -> Iterator[tuple[Shard, Any | Failure]]:
    """Run the function that `factory` makes, once per actor, over shards."""
    if not shards:
        return
    with ActorPool(factory, len(shards), settings.workers, settings.cpus_per_worker, settings.gpus_per_worker) as pool:
        yield from dispatch(pool, shards, settings.attempts)


def _labeller(task: LabelTask) -> Callable[[Shard], LedgerEntry]:
    from pipeline.labelling import Labeller

    return Labeller(task)
