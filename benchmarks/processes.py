"""Whole processes, timed from start to exit, with the peak memory of each kind of process that they start."""

import os
import subprocess
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import psutil

SAMPLE_EVERY_S = 0.5


@dataclass(frozen=True)
class Finished:
    """How one command went; `peaks_mb` is resident memory (unique to the process) by kind of process."""

    seconds: float
    code: int
    out: str
    err: str
    peaks_mb: dict[str, float] = field(default_factory=dict)


def timed(command: list[str], folder: Path, watch: bool = False) -> Finished:
    """Run a command to its end; `watch` samples the memory of its processes, which costs some of the machine's time."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    started = perf_counter()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    sampler = _Sampler(process.pid) if watch else None
    out, err = process.communicate()
    seconds = perf_counter() - started
    return Finished(seconds, process.returncode, out, err, sampler.stop() if sampler else {})


class _Sampler:
    """Looks at a process and its descendants twice a second."""

    def __init__(self, pid: int) -> None:
        self._root, self._ended = psutil.Process(pid), threading.Event()
        self._peaks: dict[str, float] = defaultdict(float)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            try:
                processes = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                return
            for process in processes:
                try:
                    kind = "driver" if process == self._root else _kind(process)
                    self._peaks[kind] = max(self._peaks[kind], process.memory_full_info().uss / 2**20)
                except psutil.Error:
                    continue

    def stop(self) -> dict[str, float]:
        self._ended.set()
        self._thread.join()
        return {kind: round(peak) for kind, peak in self._peaks.items() if kind in ("driver", "labeller")}


def _kind(process: psutil.Process) -> str:
    """Ray names a worker's process after what it does: `ray::_Worker.run` labels."""
    return "labeller" if "_Worker" in " ".join(process.cmdline()[:1]) else "other"
