"""Shards over a pool of actors that hold one model each. This process imports no torch; the actors do."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from cluster.dispatch import Failure, dispatch
from cluster.resources import labeller_size
from cluster.workers import ActorPool, Factory, Function
from pipeline.ledger import LedgerEntry
from pipeline.settings import LabelSettings
from pipeline.shards import Shard
from pipeline.tasks import EvaluateTask, ExamplesTask, LabelTask, ProbeTask

# While one shard of a labeller is in the forward pass, another is read, decoded or written.
SHARDS_AT_ONCE = 2


def label(
    shards: Iterable[Shard | None],
    task: LabelTask,
    stop: Callable[[], bool] = lambda: False,
    retries: Counter[str] | None = None,
) -> Iterator[tuple[Shard, LedgerEntry | Failure]]:
    """Label and commit shards; yield each with its ledger entry, or with why it was given up.

    Shards are drawn as labellers have room for them. None among them, `stop` and `retries`: see `dispatch`.
    """
    return over_shards(shards, partial(open_labeller, task), task.label, SHARDS_AT_ONCE, stop, retries)


def over_shards(
    shards: Iterable[Shard | None],
    factory: Factory,
    settings: LabelSettings,
    at_once: int = 1,
    stop: Callable[[], bool] = lambda: False,
    retries: Counter[str] | None = None,
) -> Iterator[tuple[Shard, Any | Failure]]:
    """Run the function that `factory` makes, once per actor, over shards, `at_once` of them per actor at a time."""
    for first in (drawn := iter(shards)):  # nothing to do needs no actors
        size = labeller_size(settings)
        with ActorPool(factory, settings.min_workers, settings.max_workers, size, at_once) as pool:
            yield from dispatch(
                pool,
                chain([first], drawn),
                settings.attempts,
                halvings=settings.batch_size.bit_length() - 1,
                stall_s=settings.stall_s,
                retries=retries,
                stop=stop,
            )


def open_labeller(task: LabelTask) -> Function:
    """Return a worker's function that labels shards."""
    from pipeline.labelling import Labeller

    return Labeller(task)


def open_extractor(task: ExamplesTask) -> Function:
    """Return a worker's function that makes example tables."""
    from pipeline.features import Extractor

    return Extractor(task)


def open_prober(task: ProbeTask) -> Function:
    """Return a worker's function that asks about spoilt pictures."""
    from pipeline.probing import Prober

    return Prober(task)


def open_judge(task: EvaluateTask) -> Function:
    """Return a worker's function that evaluates shards."""
    from pipeline.evaluation import Judge

    return Judge(task)
