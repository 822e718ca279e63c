import io
import itertools
import re
import sys
import threading
import time
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


def test_it_waits_for_workers_until_something_has_ended(clock):
    progress = Progress("label", 100, "images")
    clock.now += 75
    assert progress.line == "waiting for workers, 1:15"
    assert Progress("plan", None, "files").line == "nothing yet, 0:00"


def test_time_left_follows_the_rate_since_the_first_result_and_is_not_guessed_before(clock):
    """Workers start for 20 s, then 100 images come every second."""
    progress = Progress("label", 10_000, "images")
    progress.remark = "decode 90%"
    clock.now += 20
    progress.advance(100)
    assert progress.line == "100 of 10,000 images, 5.0/s, decode 90%"
    for _ in range(19):
        clock.now += 1
        progress.advance(100)
        assert "left" not in progress.line
    clock.now += 1
    progress.advance(100)
    assert progress.line == "2,100 of 10,000 images, 1:19 left, 100/s, decode 90%"
    clock.now += 20  # nothing more comes: the rate says so
    assert progress.line == "2,100 of 10,000 images, 2:38 left, 50/s, decode 90%"


def test_results_that_come_at_once_are_no_rate(clock):
    progress = Progress("label", 1000, "images")
    clock.now += 0.5
    for _ in range(4):
        progress.advance(10)
    clock.now += 1.9
    assert progress.seconds_left is None
    clock.now += 0.1
    assert progress.seconds_left == 64
    progress.advance(2000)  # more than there was to do, as a run that repeats shards
    assert progress.seconds_left == 0


def test_stage_of_unknown_length_says_what_is_done(clock):
    progress = Progress("plan", None, "files")
    clock.now += 11
    progress.advance(22)
    assert progress.line == "22 files, 2.0/s"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0:00"), (59.6, "1:00"), (750, "12:30"), (18000, "5:00:00")])
def test_times_are_written_as_on_a_clock(seconds, words):
    assert console.clock(seconds) == words


def test_elsewhere_a_line_comes_every_ten_seconds_also_when_nothing_ends(monkeypatch, capsys):
    assert console.LINE_EVERY_S == 10
    monkeypatch.setattr(console, "LINE_EVERY_S", 0.005)
    said, deadline = "", time.monotonic() + 20
    with stage("label", 100) as progress:
        while "waiting for workers, 0:00\n" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
        progress.advance(50)
        while "label: 50 of 100 images, " not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
    assert re.match(r"(label: waiting for workers, 0:00\n)+(label: 50 of 100 images, [\d,.]+/s\n)+", said)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


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


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_terminal_shows_one_line_that_fits(clock, width):
    progress = Progress("label", 1_000_000, "images")
    progress.remark = "1,234 quarantined, 12 retries, decode 60% engine 30% storage 9% write 1%"
    clock.now += 10
    for _ in range(2):
        progress.advance(250_000)
        clock.now += 10
    shown = console._picture(progress.name, progress.share, progress.line, width).plain
    assert len(shown) < width
    assert "\n" not in shown
    assert shown.startswith("label     ")
    if width == 80:
        assert shown == "label     500,000 of 1,000,000 images, 0:40 left, 12,500/s, 1,234 quarantined,…"
    if width == 200:
        assert shown == f"label     {'━' * 30} {progress.line}"


def test_terminal_is_drawn_while_the_stage_runs(open_terminal):
    terminal = open_terminal()
    with stage("label", 1000) as progress:
        progress.advance(20)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"label     ━{30} 20 of 1,000 images, [\d,.]+/s", shown)
    assert re.search(r"label     20 images in 0.\d s, [\d,.]+/s\n$", shown)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), None], ids=["ctrl-c", "error", "end"])
def test_terminal_is_left_as_it_was(open_terminal, error):
    terminal = open_terminal()

    def work() -> None:
        with stage("label", 100) as progress:
            progress.advance(30)
            if error:
                raise error

    with pytest.raises(type(error)) if error else nullcontext():
        work()
    shown = terminal.getvalue()
    assert "\x1b[?25l" in shown  # the cursor was hidden
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # and is there again
    assert sys.stderr is terminal
    assert re.search(r"label     30 images in [\d.]+ s, [\d,.]+/s\n$", shown)


def test_secrets_in_urls_are_not_shown(capsys):
    console.say("s3://key:secret@bucket/x and https://h/x?sig=abc failed")
    assert capsys.readouterr().err == "s3://***@bucket/x and https://h/x?sig=*** failed\n"
