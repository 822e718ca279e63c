"""Whole processes, timed from start to exit: how busy the machine was, and the peak memory of each kind of process."""

import os
import subprocess
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

SAMPLE_EVERY_S, LOOK_S = 0.5, 2.0


@dataclass(frozen=True)
class Finished:
    """How one command went.

    `began` is the wall clock when it started; `busy` the share of all cores that worked while it ran, whoever made them,
    and `busy_before` the same for two seconds before: on a quiet machine about 0. `peaks_mb` is resident memory (unique to
    the process) by kind of process, where it was asked for.
    """

    seconds: float
    code: int
    out: str
    err: str
    began: float
    busy: float
    busy_before: float
    peaks_mb: dict[str, float] = field(default_factory=dict)


def timed(command: list[str], folder: Path, watch: bool = False) -> Finished:
    """Run a command to its end; `watch` samples the memory of its processes, which costs some of the machine's time."""
    # Without an address the peers would join a cluster that runs here, or wait for one that has left its address behind.
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
    quiet = _cpu_times()
    time.sleep(LOOK_S)
    before, began, started = _cpu_times(), time.time(), perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    sampler = _Sampler(process.pid) if watch else None
    out, err = process.communicate()
    seconds = perf_counter() - started
    busy, busy_before = busy_share(before, _cpu_times()), busy_share(quiet, before)
    peaks = sampler.stop() if sampler else {}
    return Finished(seconds, process.returncode, out, err, began, busy, busy_before, peaks)


def busy_share(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Return the share of the cores' time that was not idle, from (idle, all) at two moments."""
    idle, everything = after[0] - before[0], after[1] - before[1]
    return round(1 - idle / everything, 3) if everything > 0 else 0.0


def _cpu_times() -> tuple[float, float]:
    """Return the seconds, over all cores since the machine's start, that were idle and that were at all."""
    import psutil

    times = psutil.cpu_times()
    # A guest's time is in its host's `user` already.
    everything = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
    return times.idle + getattr(times, "iowait", 0), everything


class _Sampler:
    """Looks at a process and its descendants twice a second."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._psutil: Any = psutil
        self._root, self._ended = psutil.Process(pid), threading.Event()
        self._peaks: dict[str, float] = defaultdict(float)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except self._psutil.Error:
                return
            for process in processes:
                try:
                    kind = "driver" if process == self._root else _kind(process)
                    self._peaks[kind] = max(self._peaks[kind], process.memory_full_info().uss / 2**20)
                except self._psutil.Error:
                    continue

    def stop(self) -> dict[str, float]:
        self._ended.set()
        self._thread.join()
        return {kind: round(peak) for kind, peak in self._peaks.items() if kind in ("driver", "labeller")}


def _kind(process: Any) -> str:
    """Ray names a worker's process after what it does: `ray::_Worker.run` labels."""
    return "labeller" if "_Worker" in " ".join(process.cmdline()[:1]) else "other"
