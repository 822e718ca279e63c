"""Every node of a cluster, asked the same question."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.retries import cause_of, words

# A node that was asked nothing yet starts a process and unpacks the code.
ANSWER_S = 90.0


@dataclass(frozen=True)
class Node:
    """A node and its answer; `trouble` says why there is none. Memory in bytes."""

    id: str
    address: str
    head: bool
    cpus: float
    gpus: float
    memory: float
    object_store: float
    labels: dict[str, str]
    answer: Any = None
    trouble: str | None = None

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{'head' if self.head else 'node'} {self.address} ({self.id[:6]})"


def ask_nodes(question: Callable[..., Any], *arguments: Any) -> list[Node]:
    """Call a function on every node that lives, the head first, whatever else runs there."""
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: not _is_head(node))
    remote = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            *arguments
        )
        for node in alive
    ]
    end, found = monotonic() + ANSWER_S, []
    for node, future in zip(alive, asked, strict=True):
        answer, trouble = None, None
        try:
            answer = ray.get(future, timeout=max(0.0, end - monotonic()))
        except GetTimeoutError:
            trouble = f"it does not answer within {ANSWER_S:.0f} s"
        except (RayTaskError, RayError) as error:
            trouble = words(cause_of(error))
        found.append(_node(node, answer, trouble))
    return found


def _is_head(node: dict[str, Any]) -> bool:
    return "node:__internal_head__" in node["Resources"]


def _node(node: dict[str, Any], answer: Any, trouble: str | None) -> Node:
    has = node["Resources"]
    cpus, gpus, memory, store = (has.get(name, 0.0) for name in ("CPU", "GPU", "memory", "object_store_memory"))
    return Node(
        id=node["NodeID"], address=node["NodeManagerAddress"], head=_is_head(node), cpus=cpus, gpus=gpus, memory=memory,
        object_store=store, labels=dict(node["Labels"]), answer=answer, trouble=trouble,
    )  # fmt: skip
