"""The nodes of a cluster for `doctor`: what each has, whether all run the same programs, whether each reaches the store."""

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.config import Config
from pipeline.documents import Document
from pipeline.errors import NightshiftError
from pipeline.libraries import library_versions

if TYPE_CHECKING:
    from cluster.nodes import Node

# What must be the same everywhere: by another of these a node labels otherwise, or fails in the middle of a night.
COMPARED = (
    "ray", "torch", "torchvision", "numpy", "pyarrow", "obstore", "openvino", "pillow", "simplejpeg", "cykooz-resizer", "safetensors",
)  # fmt: skip
MENDING = (
    "run the same image on every node (Dockerfile), or install the same versions there: "
    "pip install -c constraints.txt and the name"
)


def versions() -> dict[str, str | None]:
    """Return what this process runs, by name; our own code by its digest."""
    from cluster.checkout import code_digest

    return {"python": platform.python_version(), "nightshift": code_digest(), **library_versions(COMPARED)}


def inspect_nodes(config: Config | None) -> Document:
    """Ask every node of the session that is joined, and compare it with this process."""
    from cluster.nodes import ask_nodes

    store = (config.store, config.storage) if config else None
    here = versions()
    return {node.name: _judged(node, here) for node in ask_nodes(_answer, store)}


def _answer(store: tuple | None) -> dict:  # type: ignore[type-arg]
    """On a node: say what it runs, and how the store answers it."""
    from pipeline.storage import open_storage
    from pipeline.storecheck import check_store

    trouble = None
    if store is not None:
        try:
            check_store(open_storage(*store))
        except NightshiftError as error:
            trouble = str(error)
    return {"versions": versions(), "store": trouble}


def _judged(node: "Node", here: dict[str, str | None]) -> Document:
    has = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs, {node.memory / 1e9:.1f} GB memory, {node.object_store / 1e9:.1f} GB object store"
    labels = ", ".join(
        f"{key}={value}" for key, value in sorted(node.labels.items()) if key != "ray.io/node-id" and value
    )
    has += f"; labels {labels}" if labels else ""
    if node.trouble:
        return {"ok": False, "found": f"{has}; {node.trouble}"}
    there = node.answer["versions"]
    found = f"{has}; {', '.join(f'{name} {version}' for name, version in there.items() if version)}"
    troubles = [*differences(here, there), *([node.answer["store"]] if node.answer["store"] else [])]
    return {"ok": not troubles, "found": "; ".join([found, *troubles])}


def differences(here: dict[str, str | None], there: dict[str, str | None]) -> Sequence[str]:
    """Return in words what a node has otherwise than the driver, and what to do about it; empty when nothing."""
    other = [
        f"{name} is {there.get(name) or 'missing'} there and {version or 'missing'} at the driver"
        for name, version in here.items()
        if there.get(name) != version
    ]
    return [f"{', '.join(other)}: {MENDING}"] if other else []
