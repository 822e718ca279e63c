"""What people see: a progress bar per stage on a terminal, plain lines elsewhere; everything on stderr, so stdout stays data."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic

from pipeline.refusals import printable

LINE_EVERY_S = 10.0


def say(text: str = "") -> None:
    """Print a line for people; what may be a secret in a URL is masked."""
    print(printable(text), file=sys.stderr, flush=True)


def counted(count: int, noun: str = "image") -> str:
    """Say how many there are of something."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


class Progress:
    """Counts of one stage: `advance` it by what is done."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, 0
        self.remark = ""  # shown behind the rate
        self.started = self._said = monotonic()

    def advance(self, count: int) -> None:
        """Add to what is done."""
        self.done += count
        if monotonic() - self._said >= LINE_EVERY_S:
            self._said = monotonic()
            say(
                f"{self.name}: {self._position()}, {self._remarked()}"
                if self.done
                else f"{self.name}: the workers are starting"
            )

    def _remarked(self) -> str:
        return f"{self.pace}, {self.remark}" if self.remark else self.pace

    def _position(self) -> str:
        if self.total is None:
            return f"{self.done:,} {self.unit}"
        return f"{self.done:,} of {self.total:,} {self.unit}, {(self.total - self.done) / self.rate:,.0f} s left"

    @property
    def rate(self) -> float:
        """Units per second since the start of the stage."""
        return self.done / max(1e-9, monotonic() - self.started)

    @property
    def pace(self) -> str:
        """The rate for people: a slow stage keeps its decimal."""
        return f"{self.rate:,.{1 if self.rate < 10 else 0}f}/s"

    @property
    def seconds(self) -> float:
        """Time since the start of the stage."""
        return monotonic() - self.started


class _Bar(Progress):
    """The same as a bar that rich draws."""

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        super().__init__(name, total, unit)
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self.rich = Rich(
            TextColumn("{task.description:<9}"), BarColumn(32), MofNCompleteColumn(), TextColumn(unit),
            TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._task = self.rich.add_task(name, total=total, rate="the workers are starting")

    def advance(self, count: int) -> None:
        self.done += count
        if self.done:
            self.rich.update(self._task, advance=count, rate=self._remarked())


@contextmanager
def stage(name: str, total: int | None, unit: str = "images") -> Iterator[Progress]:
    """Show a stage while the block runs, and one line of what it did at its end, also when it is cut short."""
    bar = _Bar(name, total, unit) if sys.stderr.isatty() else None
    progress = bar or Progress(name, total, unit)
    try:
        with bar.rich if bar else nullcontext():
            yield progress
    finally:
        if progress.done:
            say(
                f"{name:<9} {counted(progress.done, unit.removesuffix('s'))} in {progress.seconds:.1f} s, {progress.pace}"
            )
