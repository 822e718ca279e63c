"""`nightshift doctor`: what is installed, what the session has, whether the store and the input answer, one known answer."""

import json
import os
import platform
import sys
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from jobs.config import Config, read_config
from jobs.runs import library_versions
from pipeline.documents import Document
from pipeline.errors import AlreadyExistsError, NightshiftError, StorageError
from pipeline.settings import ClusterSettings
from pipeline.sources import list_source

LIBRARIES = ("nightshift", "ray", "torch", "torchvision", "pyarrow", "obstore", "pillow", "scikit-learn")


def examine(path: str | None, overrides: Sequence[str], as_json: bool) -> int:
    """Run every check, print a line each, and return 1 when one failed."""
    config = _impatient(read_config(path, overrides)) if path else None
    checks: dict[str, Callable[[], str]] = {
        "machine": _machine,
        "libraries": _libraries,
        "known answer": _known_answer,
        "cluster": lambda: _cluster(config.cluster if config else ClusterSettings()),
    }
    if config:
        checks |= {"store": lambda: _store(config), "input": lambda: _input(config)}
    results: Document = {}
    for name, check in checks.items():
        try:
            results[name] = {"ok": True, "found": check()}
        except (
            NightshiftError,
            ImportError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # what broken libraries raise
            results[name] = {"ok": False, "found": str(error) or type(error).__name__}
        if not as_json:
            print(f"{'ok  ' if results[name]['ok'] else 'FAIL'} {name}: {results[name]['found']}", flush=True)
    if as_json:
        print(json.dumps(results, ensure_ascii=False))
    return 0 if all(result["ok"] for result in results.values()) else 1


def _impatient(config: Config) -> Config:
    """Return the config with short timeouts: an endpoint that does not answer is an answer."""
    storage = config.storage.model_copy(update={"timeout_s": min(5.0, config.storage.timeout_s), "max_retries": 1})
    return config.model_copy(update={"storage": storage})


def _machine() -> str:
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{platform.platform()}, {os.cpu_count()} CPUs, {memory_gib:.0f} GiB, Python {sys.version.split()[0]}"


def _libraries() -> str:
    return ", ".join(f"{name} {version or '-'}" for name, version in library_versions(LIBRARIES).items())


def _known_answer() -> str:
    """Compute the golden 3 x 3 convolution, which every course prints."""
    import torch
    from torch.nn.functional import conv2d

    image = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 1, 1, 0, 0]]).float()
    kernel = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).float()
    answer = conv2d(image[None, None], kernel[None, None])[0, 0].int().tolist()
    if answer != [[4, 3, 4], [2, 4, 3], [2, 3, 4]]:
        raise NightshiftError(f"torch computes {answer} for a convolution whose answer is 434 243 234; reinstall torch")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"a convolution gives 434 243 234, as it must; training and labelling use {device}"


def _cluster(settings: ClusterSettings) -> str:
    from cluster.resources import available
    from cluster.session import session

    with session(settings):
        where = settings.address or "a one-node session here"
        return f"{where}: {available('CPU'):g} CPUs, {available('GPU'):g} GPUs; workers import the same nightshift"


def _store(config: Config) -> str:
    """Write, read, create twice and delete one small object."""
    store, name = config.open_store(), f"doctor/{uuid.uuid4().hex}.txt"
    store.create(name, b"nightshift")
    try:
        if store.read(name) != b"nightshift":
            raise StorageError(f"{store.url} does not return what was written; check what lies between")
        _refuses_second(store, name)
    finally:
        store.delete(name)
    return f"{store.url} can be written and read, and creates a name only once"


def _refuses_second(store: Any, name: str) -> None:
    try:
        store.create(name, b"again")
    except AlreadyExistsError:
        return
    raise StorageError(
        f"{store.url} overwrote a create-only object; publishing is not safe there: use a store with conditional PUT"
    )


def _input(config: Config) -> str:
    listing = list_source(config.input, config.storage)
    return f"{config.input.url}: {len(listing.files):,} files ({listing.format}), {listing.ignored:,} others"
