"""What people see: one line per stage that follows it on a terminal, a line every ten seconds elsewhere.

Everything is on stderr, so stdout stays data.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from time import monotonic
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.text import Text

from pipeline.refusals import printable

LINE_EVERY_S = 10.0
SETTLED_S = 2.0  # before so much time has passed since the first result nobody knows the rate
SHORTEST_BAR, LONGEST_BAR = 8, 30  # columns


def say(text: str = "") -> None:
    """Print a line for people; what may be a secret in a URL is masked."""
    print(printable(text), file=sys.stderr, flush=True)


def counted(count: int, noun: str = "image") -> str:
    """Say how many there are of something."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class Progress:
    """Counts of one stage: `advance` it by what is done. A line every ten seconds says how far it is."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.remark = ""  # shown behind the rate
        self.started = monotonic()
        self._first: tuple[float, int] | None = None  # when the first result came, and how much it was

    def advance(self, count: int) -> None:
        """Add to what is done."""
        self.done += count
        if self._first is None and count:
            self._first = monotonic(), count

    @property
    def line(self) -> str:
        """How far the stage is."""
        if not self.done:
            return f"{'waiting for workers' if self.total else 'nothing yet'}, {clock(self.seconds)}"
        position = (
            f"{self.done:,} {self.unit}" if self.total is None else f"{self.done:,} of {self.total:,} {self.unit}"
        )
        left = self.seconds_left
        parts = [position, *([f"{clock(left)} left"] if left is not None else []), f"{self.pace}", self.remark]
        return ", ".join(part for part in parts if part)

    @property
    def share(self) -> float | None:
        """How much of the stage is done, 0 to 1; None when the whole is not known."""
        return self.done / self.total if self.total else None

    @property
    def rate(self) -> float:
        """Units per second since the start of the stage."""
        return self.done / max(1e-9, monotonic() - self.started)

    @property
    def pace(self) -> str:
        """The rate for people: a slow stage keeps its decimal."""
        rate = self._steady_rate or self.rate
        return f"{rate:,.{1 if rate < 10 else 0}f}/s"

    @property
    def seconds(self) -> float:
        """Time since the start of the stage."""
        return monotonic() - self.started

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the present rate, None as long as nobody can know."""
        if self.total is None or self._steady_rate is None:
            return None
        return max(0, self.total - self.done) / self._steady_rate

    @property
    def _steady_rate(self) -> float | None:
        """Units per second since the first result: workers start for seconds, which says nothing of what follows.

        None until as much time has passed since then as before, so that a first result or several that come at once
        are not taken for the rate.
        """
        if self._first is None:
            return None
        at, count = self._first
        since = monotonic() - at
        if since < max(SETTLED_S, at - self.started) or self.done == count:
            return None
        return (self.done - count) / since


def clock(seconds: float) -> str:
    """Write a time as people read clocks: `0:07`, `12:30`, `5:00:00`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


@contextmanager
def stage(name: str, total: int | None, unit: str = "images") -> Iterator[Progress]:
    """Show a stage while the block runs, and one line of what it did at its end, also when it is cut short."""
    progress = Progress(name, total, unit)
    shown = _drawn(progress) if sys.stderr.isatty() else _spoken(progress)
    try:
        with shown:
            yield progress
    finally:
        if progress.done:
            rate = progress.rate
            pace = f"{rate:,.{1 if rate < 10 else 0}f}/s"
            say(f"{name:<9} {counted(progress.done, unit.removesuffix('s'))} in {progress.seconds:.1f} s, {pace}")


@contextmanager
def _spoken(progress: Progress) -> Iterator[None]:
    """Say a line every ten seconds, also while nothing ends."""
    ended = Event()

    def speak() -> None:
        while not ended.wait(LINE_EVERY_S):
            with suppress(OSError, ValueError):  # whoever read stderr is gone, which the work need not know
                say(f"{progress.name}: {progress.line}")

    speaker = Thread(target=speak, name="progress", daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


@contextmanager
def _drawn(progress: Progress) -> Iterator[None]:
    """Draw one line that follows the stage, cut to the width of the terminal; it is gone at the end."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    with Live(
        get_renderable=lambda: _picture(progress.name, progress.share, progress.line, console.width),
        console=console, transient=True, refresh_per_second=4,
    ):  # fmt: skip
        yield


class Drawing:
    """A line drawn in place on a terminal that others draw for us: what a job on a cluster says of its progress."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._now: tuple[str, float | None, str] = "", None, ""
        self._live = Live(get_renderable=self._picture, console=self._console, transient=True, refresh_per_second=4)

    def draw(self, name: str, share: float | None, words: str) -> None:
        """Show a stage, how much of it is done (0 to 1, None: unknown), and its words."""
        self._now = name, share, words

    def print(self, line: str) -> None:
        """Print a line above."""
        self._console.print(line)

    def _picture(self) -> "Text":
        return _picture(*self._now, self._console.width)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def _picture(name: str, share: float | None, line: str, width: int) -> "Text":
    """Return name, bar (where there is room for it) and words, in one line of at most `width` columns."""
    from rich.text import Text

    words = Text(f"{name:<9} " if name else "")
    room = width - len(words.plain) - len(line) - 1
    if share is not None and room >= SHORTEST_BAR:
        length = min(LONGEST_BAR, room)
        full = round(length * min(1.0, share))
        words.append("━" * full, "green").append("━" * (length - full), "bright_black").append(" ")
    words.append(line)
    words.truncate(width - 1, overflow="ellipsis")  # the last column makes some terminals wrap
    words.no_wrap = True
    return words
