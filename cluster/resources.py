"""What the session has, and how many workers of a size fit into it."""

import math
from collections.abc import Mapping

import ray

from pipeline.errors import UsageError


def available(resource: str = "CPU") -> float:
    """Return how much of a resource the whole session has."""
    return float(ray.cluster_resources().get(resource, 0))


def unused(resource: str = "CPU") -> float:
    """Return how much of a resource nobody holds now."""
    return float(ray.available_resources().get(resource, 0))


def fitting(cpus: float, gpus: float, wanted: int | None) -> int:
    """Return how many workers to start: `wanted`, or as many as fit.

    Raises
    ------
    UsageError
        When not even one fits, or fewer than are wanted: they would wait for ever.
    """
    most = sum(_fitting_on(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])
    if most < max(1, wanted or 1):
        raise UsageError(
            f"{wanted or 1} worker(s) of {cpus:g} CPU and {gpus:g} GPU do not fit into {available('CPU'):g} CPU and "
            f"{available('GPU'):g} GPU; ask for fewer or smaller ones, or raise cluster.num_cpus on one machine"
        )
    return wanted or most


def _fitting_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many workers one node holds: a worker never spans two, so fractions that are left over do not add up."""
    by_cpu = math.floor(node.get("CPU", 0) / cpus)
    return min(by_cpu, math.floor(node.get("GPU", 0) / gpus)) if gpus else by_cpu
