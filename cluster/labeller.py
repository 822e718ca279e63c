"""Shards over a pool of actors that hold one model each. This process imports no torch; the actors do."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from cluster.dispatch import Failure, dispatch
from cluster.resources import available
from cluster.workers import ActorPool, Factory
from pipeline.ledger import LedgerEntry
from pipeline.settings import LabelSettings
from pipeline.shards import Shard
from pipeline.tasks import EvaluateTask, ExamplesTask, LabelTask


def label(
    shards: Sequence[Shard], task: LabelTask, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Shard, LedgerEntry | Failure]]:
    """Label and commit shards; yield each with its ledger entry, or with why it was given up.

    Once `stop` says so no new shard starts; what is in flight ends.
    """
    return over_shards(shards, partial(open_labeller, task), task.label, stop)


def over_shards(
    shards: Sequence[Shard], factory: Factory, settings: LabelSettings, stop: Callable[[], bool] = lambda: False
) -> Iterator[tuple[Shard, Any | Failure]]:
    """Run the function that `factory` makes, once per actor, over shards."""
    if not shards:
        return
    gpus = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(available("GPU") > 0)
    with ActorPool(factory, len(shards), settings.max_workers, settings.cpus_per_worker, gpus) as pool:
        yield from dispatch(pool, takewhile(lambda _: not stop(), shards), settings.attempts)


def open_labeller(task: LabelTask) -> Callable[[Shard], LedgerEntry]:
    """Return a worker's function that labels shards."""
    from pipeline.labelling import Labeller

    return Labeller(task)


def open_extractor(task: ExamplesTask) -> Callable[[Shard], int]:
    """Return a worker's function that makes example tables."""
    from pipeline.features import Extractor

    return Extractor(task)


def open_judge(task: EvaluateTask) -> Callable[[Shard], Any]:
    """Return a worker's function that evaluates shards."""
    from pipeline.evaluation import Judge

    return Judge(task)
