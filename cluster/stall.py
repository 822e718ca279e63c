"""When nothing goes on: the clock that notices, and what a process is doing, in our own words and lines."""

import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path
from types import FrameType

import pipeline

ROOT = Path(pipeline.__file__).resolve().parent.parent
OURS = tuple(f"{ROOT / package}/" for package in ("pipeline", "cluster", "jobs"))
FRAMES = 3


class StallClock:
    """Is due after `limit_s` without progress, then after twice, four times, ... that."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = self._next_s = limit_s
        self._since = time.monotonic()

    def progressed(self) -> None:
        """Start again."""
        self._since, self._next_s = time.monotonic(), self._limit_s

    @property
    def silent_s(self) -> float:
        """Seconds without progress."""
        return time.monotonic() - self._since

    def due(self) -> bool:
        """Return whether it is time to say something: once per limit."""
        if self.silent_s < self._next_s:
            return False
        self._next_s *= 2
        return True


def name_of(item: object) -> str:
    """Return what to call an item: a shard by its id, others shortened."""
    found = getattr(item, "id", None)
    return f"shard {found}" if isinstance(found, str) else repr(item)[:80]


def doing(working: dict[int, tuple[str, float]]) -> str:
    """Say what this process is doing.

    Parameters
    ----------
    working : dict
        Of threads: the name of what each works on, and the `time.monotonic()` of its start.
    """
    frames = sys._current_frames()
    said = [
        f"{name} for {time.monotonic() - started:.0f} s in {_place(frames.get(thread))}"
        for thread, (name, started) in working.items()
    ]
    others = {_place(frame, 1) for thread, frame in frames.items() if _is_other(thread, working)}
    if beside := sorted(place for place in others if place):
        said.append(f"beside it {', '.join(beside)}")
    return "; ".join(said) or "nothing"


def _is_other(thread: int, working: Collection[int]) -> bool:
    return thread not in working and thread != threading.get_ident()


def _place(frame: FrameType | None, limit: int = FRAMES) -> str:
    """Return the innermost frames that are ours, innermost first: `read pipeline/storage.py:88 < label_shard ...`."""
    found: list[str] = []
    while frame is not None and len(found) < limit:
        code = frame.f_code
        if code.co_filename.startswith(OURS):
            found.append(f"{code.co_name} {Path(code.co_filename).relative_to(ROOT)}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)
