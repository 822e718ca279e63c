import io
import itertools
import re
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from jobs import console
from jobs.console import Progress, stage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "monotonic", clock)
    return clock


@pytest.fixture
def open_terminal(monkeypatch) -> Callable[[], Terminal]:
    """Return a function that makes stderr a terminal of 120 columns, on which every look at rich's clock takes a second."""
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    ticks = itertools.count()
    monkeypatch.setattr("rich.console.monotonic", lambda: float(next(ticks)))

    def open_terminal() -> Terminal:  # in the test itself: pytest sets its own stderr after the fixtures
        screen = Terminal()
        monkeypatch.setattr("sys.stderr", screen)
        return screen

    return open_terminal


@pytest.mark.parametrize(
    ("done", "seconds", "line"),
    [
        (4, 8.9, "plan      4 files in 8.9 s, 0.4/s"),
        (90, 10, "plan      90 files in 10.0 s, 9.0/s"),
        (100, 10, "plan      100 files in 10.0 s, 10/s"),
        (123_456, 10, "plan      123,456 files in 10.0 s, 12,346/s"),
    ],
)
def test_stage_ends_with_one_line_and_slow_rates_keep_a_decimal(clock, capsys, done, seconds, line):
    with stage("plan", None, "files") as progress:
        clock.now += seconds
        progress.advance(done)
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_stage_in_which_nothing_was_done_says_nothing(capsys):
    with stage("label", 0):
        pass
    assert capsys.readouterr().err == ""


def test_long_stage_says_every_ten_seconds_how_far_it_is(clock, capsys):
    with stage("label", 100) as progress:
        for _ in range(8):
            clock.now += 5
            progress.advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "label: 4 of 100 images, 240 s left, 0.4/s",
        "label: 8 of 100 images, 230 s left, 0.4/s",
        "label: 12 of 100 images, 220 s left, 0.4/s",
        "label: 16 of 100 images, 210 s left, 0.4/s",
        "label     16 images in 40.0 s, 0.4/s",
    ]


def test_stage_of_unknown_length_says_what_is_done(clock, capsys):
    progress = Progress("plan", None, "files")
    clock.now += 11
    progress.advance(22)
    assert capsys.readouterr().err == "plan: 22 files, 2.0/s\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")], ids=["ctrl-c", "error"])
def test_stage_that_is_cut_short_says_what_was_done_and_lets_the_error_through(clock, capsys, error):
    def work() -> None:
        with stage("label", 100) as progress:
            clock.now += 2
            progress.advance(30)
            raise error

    with pytest.raises(type(error)):
        work()
    assert capsys.readouterr().err == "label     30 images in 2.0 s, 15/s\n"


def test_terminal_shows_a_bar_with_rate_and_time_left(open_terminal, clock):
    terminal = open_terminal()
    with stage("label", 1000) as progress:
        clock.now += 4
        progress.advance(10)
        progress.rich.refresh()
        clock.now += 4
        progress.advance(10)
        progress.rich.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"label .*20/1000 images 2\.5/s \d+:\d\d:\d\d", shown)
    assert shown.endswith("label     20 images in 8.0 s, 2.5/s\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), None], ids=["ctrl-c", "error", "end"])
def test_terminal_is_left_as_it_was(open_terminal, error):
    terminal, bars = open_terminal(), []

    def work() -> None:
        with stage("label", 100) as progress:
            bars.append(progress.rich)
            progress.advance(30)
            if error:
                raise error

    with pytest.raises(type(error)) if error else nullcontext():
        work()
    shown = terminal.getvalue()
    assert "\x1b[?25l" in shown  # the cursor was hidden
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # and is there again
    assert not bars[0].live.is_started
    assert re.search(r"label     30 images in [\d.]+ s, [\d,.]+/s\n$", shown)


def test_secrets_in_urls_are_not_shown(capsys):
    console.say("s3://key:secret@bucket/x and https://h/x?sig=abc failed")
    assert capsys.readouterr().err == "s3://***@bucket/x and https://h/x?sig=*** failed\n"
