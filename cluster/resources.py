"""What the session has, and how many workers of a size fit into it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state  # as Ray Train does (2.60): there is no public way

from pipeline.errors import TransientError, UsageError
from pipeline.settings import LabelSettings
from pipeline.trainsettings import TrainSettings

MB = 1e6


@dataclass(frozen=True)
class Size:
    """What one worker needs, and which nodes it may be on: those that carry all of `node_labels`.

    `memory_mb` is what Ray counts with when it looks for a place, no limit: 0 counts nothing.
    """

    cpus: float
    gpus: float = 0
    memory_mb: float = 0
    node_labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def bundle(self) -> dict[str, float]:
        """The resources by Ray's names for them."""
        needed = {"CPU": float(self.cpus), "GPU": float(self.gpus), "memory": self.memory_mb * MB}
        return {name: amount for name, amount in needed.items() if amount}

    @property
    def options(self) -> dict[str, Any]:
        """What `ray.remote` is told."""
        found: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory_mb:
            found["memory"] = self.memory_mb * MB
        if self.node_labels:
            found["label_selector"] = dict(self.node_labels)
        return found

    def times(self, node: Mapping[str, Any]) -> int:
        """Return how often it fits on a node, were that empty; fractions left over on two nodes do not add up."""
        if not node["Alive"] or any(node["Labels"].get(key) != value for key, value in self.node_labels.items()):
            return 0
        has: Mapping[str, float] = node["Resources"]
        return min(math.floor(has.get(name, 0) / amount) for name, amount in self.bundle.items())

    def __str__(self) -> str:
        memory = f" and {self.memory_mb:g} MB" if self.memory_mb else ""
        where = ", ".join(f"{key}={value}" for key, value in self.node_labels.items())
        return f"{self.cpus:g} CPU and {self.gpus:g} GPU{memory}" + (f" on nodes labelled {where}" if where else "")


def labeller_size(settings: LabelSettings) -> Size:
    """Return what one labeller needs: a GPU where the session has some, if the config does not say."""
    gpus = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(available("GPU") > 0)
    return Size(settings.cpus_per_worker, gpus, settings.memory_mb_per_worker or 0, settings.node_labels)


def trainer_size(settings: TrainSettings) -> Size:
    """Return what one training worker needs."""
    return Size(
        settings.cpus_per_worker, settings.gpus_per_worker, settings.memory_mb_per_worker or 0, settings.node_labels
    )


def available(resource: str = "CPU") -> float:
    """Return how much of a resource the whole session has."""
    return float(ray.cluster_resources().get(resource, 0))


def unused(resource: str = "CPU") -> float:
    """Return how much of a resource nobody holds now."""
    return float(ray.available_resources().get(resource, 0))


def places(size: Size) -> int:
    """Return how many workers of a size the session's nodes hold, if nobody else holds anything."""
    leaving = draining()
    return sum(size.times(node) for node in ray.nodes() if node["NodeID"] not in leaving)


def draining() -> set[str]:
    """Return the ids of the nodes that are to be taken away: a preemption notice, or the autoscaler's.

    By when is not asked: that is a time by another machine's clock.
    """
    return set(state.get_draining_nodes())


def check_alive() -> None:
    """Raise TransientError when no node of the session lives: one may join a head that lives, and nothing joins a dead one.

    Ray (2.60) goes on waiting for workers then, without a word.
    """
    if not any(node["Alive"] for node in ray.nodes()):
        raise TransientError(
            "no machine of the Ray session is alive any more, not even its head (its raylet was killed, perhaps for memory). "
            "What is committed stays: the same command continues it"
        )


def check_fits(workers: int, size: Size) -> int:
    """Return how many workers fit.

    Raises
    ------
    UsageError
        When fewer than `workers` do: they would wait for ever.
    """
    most = places(size)
    if most < workers:
        memory = f" and {available('memory') / MB:,.0f} MB" if size.memory_mb else ""
        raise UsageError(
            f"{workers} worker(s) of {size} do not fit into {available('CPU'):g} CPU and "
            f"{available('GPU'):g} GPU{memory}; ask for fewer or smaller ones, or raise cluster.num_cpus on one machine"
        )
    return most


def fitting(size: Size, wanted: int | None) -> int:
    """Return how many workers to start: `wanted`, or as many as fit; UsageError when not even one fits, or fewer than wanted."""
    most = check_fits(wanted or 1, size)
    return wanted or most
