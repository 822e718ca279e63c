"""`nightshift doctor`: what is installed, what the session has, whether the store and the input answer, one known answer."""

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence

from jobs.config import Config, read_config
from jobs.roundcall import inspect_nodes
from pipeline.documents import Document
from pipeline.errors import NightshiftError
from pipeline.libraries import library_versions
from pipeline.refusals import printable
from pipeline.settings import ClusterSettings, is_dashboard
from pipeline.sources import list_source
from pipeline.storecheck import check_store

LIBRARIES = ("nightshift", "ray", "torch", "torchvision", "pyarrow", "obstore", "pillow", "scikit-learn")


def examine(path: str | None, overrides: Sequence[str], address: str | None, as_json: bool) -> int:
    """Run every check, print a line each, and return 1 when one failed.

    Where `address`, or `cluster.address`, is a dashboard, this machine only submits: the checks run there, as a job.
    """
    config = _impatient(read_config(path, overrides)) if path else None
    where = address or (config.cluster.address if config else None)
    if where is not None and is_dashboard(where):
        return _examine_there(config, where, as_json)
    settings = (config.cluster if config else ClusterSettings()).model_copy(update={"address": where})
    report = Report(as_json)
    report.check("machine", _machine)
    report.check("libraries", _libraries)
    report.check("known answer", _known_answer)
    _check_cluster(report, settings, config)
    if config:
        report.check("store", lambda: _store(config))
        report.check("input", lambda: _input(config))
    return report.end()


def _examine_there(config: Config | None, address: str, as_json: bool) -> int:
    """Check what submitting needs here, then let the cluster examine itself."""
    from jobs.submit import examine_cluster

    report = Report(as_json)
    report.check("machine", _machine)
    report.check("libraries", _libraries)
    return max(report.end(), examine_cluster(config, address, as_json))


class Report:
    """The lines of the checks, printed as they come; with `as_json` one document at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json, self._results = as_json, Document()

    def check(self, name: str, check: Callable[[], str]) -> None:
        """Run a check; it returns what it found, or raises."""
        try:
            self.add(name, True, check())
        except (
            NightshiftError,
            ImportError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # what broken libraries raise
            self.add(name, False, str(error) or type(error).__name__)

    def add(self, name: str, ok: bool, found: str) -> None:
        """Add a line."""
        self._results[name] = {"ok": ok, "found": found}
        if not self._as_json:
            print(f"{'ok  ' if ok else 'FAIL'} {name}: {printable(found)}", flush=True)

    def end(self) -> int:
        """Print the document where that is asked for, and return the exit code."""
        if self._as_json:
            print(json.dumps(self._results, ensure_ascii=False))
        return 0 if all(result["ok"] for result in self._results.values()) else 1


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


def _check_cluster(report: Report, settings: ClusterSettings, config: Config | None) -> None:
    """Join or start the session; of a cluster ask every node."""
    from cluster.session import session

    try:
        with session(settings):
            report.check("cluster", lambda: _session(settings.address))
            if settings.address:
                for name, result in inspect_nodes(config).items():
                    report.add(name, result["ok"], result["found"])
    except NightshiftError as error:
        report.add("cluster", False, str(error))


def _session(address: str | None) -> str:
    from cluster.resources import available

    where = address or "a one-node session here"
    return f"{where}: {available('CPU'):g} CPUs, {available('GPU'):g} GPUs; workers import the same nightshift"


def _store(config: Config) -> str:
    store = config.open_store()
    check_store(store)
    return f"{store.url} can be written and read, and creates a name only once"


def _input(config: Config) -> str:
    listing = list_source(config.input, config.storage)
    return f"{config.input.url}: {len(listing.files):,} files ({listing.format}), {listing.ignored:,} others"
