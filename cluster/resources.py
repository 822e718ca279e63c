"""What the session has, and how many workers of a size fit into it."""

import math
from collections.abc import Mapping

import ray

from pipeline.errors import TransientError, UsageError


def available(resource: str = "CPU") -> float:
    """Return how much of a resource the whole session has."""
    return float(ray.cluster_resources().get(resource, 0))


def unused(resource: str = "CPU") -> float:
    """Return how much of a resource nobody holds now."""
    return float(ray.available_resources().get(resource, 0))


def places(cpus: float, gpus: float) -> int:
    """Return how many workers of a size the session's nodes hold, if nobody else holds anything."""
    return sum(_fitting_on(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])


def check_alive() -> None:
    """Raise TransientError when no node of the session lives: one may join a head that lives, and nothing joins a dead one.

    Ray (2.60) goes on waiting for workers then, without a word.
    """
    if not any(node["Alive"] for node in ray.nodes()):
        raise TransientError(
            "no machine of the Ray session is alive any more, not even its head (its raylet was killed, perhaps for memory). "
            "What is committed stays: the same command continues it"
        )


def check_fits(workers: int, cpus: float, gpus: float) -> int:
    """Return how many workers fit.

    Raises
    ------
    UsageError
        When fewer than `workers` do: they would wait for ever.
    """
    most = places(cpus, gpus)
    if most < workers:
        raise UsageError(
            f"{workers} worker(s) of {cpus:g} CPU and {gpus:g} GPU do not fit into {available('CPU'):g} CPU and "
            f"{available('GPU'):g} GPU; ask for fewer or smaller ones, or raise cluster.num_cpus on one machine"
        )
    return most


def fitting(cpus: float, gpus: float, wanted: int | None) -> int:
    """Return how many workers to start: `wanted`, or as many as fit; UsageError when not even one fits, or fewer than wanted."""
    most = check_fits(wanted or 1, cpus, gpus)
    return wanted or most


def _fitting_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many workers one node holds: a worker never spans two, so fractions that are left over do not add up."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus)) if gpus else by_cpu
