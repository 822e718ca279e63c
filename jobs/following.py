"""A submitted job's log as people see it: its lines, and on a terminal its progress as one line that follows it."""

import json
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import IO, TYPE_CHECKING, Any

from jobs.console import Drawing, say
from jobs.runs import FAILED, OK, STOPPED
from pipeline.refusals import first_line, printable

if TYPE_CHECKING:
    from cluster.submission import Job, JobsApi

# What `console.stage` says every ten seconds: "label: 1,234 of 5,000 images, 0:12 left, 104/s, ..."
_PROGRESS = re.compile(
    r"([a-z][\w ]{0,20}): ((?:([\d,]+) of ([\d,]+) \w+|[\d,]+ \w+)(?:, [\d:]+ left)?, [\d.,]+/s(?:, .*)?"
    r"|(?:waiting for workers|nothing yet), [\d:]+)"
)
CODES = range(6)
RECORDS = ('{"run_id": ', '{"command": ', '{"machine": ', '{"dry_run": ')


def watch(api: "JobsApi", job_id: str, as_json: bool) -> int:
    """Show a job's log until it ends, say how it ended, and return its exit code. Ctrl-C leaves it running."""
    from pipeline.errors import TransientError

    log = Log(sys.stderr if as_json else sys.stdout)
    try:
        with log.shown():
            job = api.follow(job_id, log.feed, say)
            log.end()
    except (KeyboardInterrupt, TransientError) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        outcome = f"job {job_id} goes on" if stopped else f"{error}; job {job_id} may go on"
        say(f"{outcome}: {ways_on(api, job_id)}")
        code = STOPPED if stopped else FAILED
        if as_json:
            print(stand_in(job_id, "unknown", code, outcome), flush=True)
        return code
    return conclude(job, as_json, log.record)


def conclude(job: "Job", as_json: bool, record: str | None) -> int:
    """Say how a job ended unless all is well, print its record if that is asked for, and return the exit code."""
    code = exit_code(job)
    why = "" if job.exit_code in CODES else f": {first_line(Exception(job.message))}"
    outcome = f"job {job.id}: {job.status.lower()}, exit code {code}{why if code else ''}"
    if code != OK:
        say(outcome)
    if as_json:
        print(record or stand_in(job.id, job.status.lower(), code, outcome), flush=True)
    return code


def stand_in(job_id: str, status: str, code: int, outcome: str) -> str:
    """Return the last line of stdout for a job that left no record of its own."""
    return json.dumps(
        {"command": "submit", "job": job_id, "status": status, "exit_code": code, "outcome": printable(outcome)}
    )


def exit_code(job: "Job") -> int:
    """Return the command's own exit code; 5 for a job that was stopped, 1 for one that died or never started."""
    if job.status == "STOPPED":
        return STOPPED
    if job.exit_code in CODES:
        return int(job.exit_code or 0)
    return OK if job.status == "SUCCEEDED" else FAILED


def ways_on(api: "JobsApi", job_id: str) -> str:
    """Return the commands that go on with a job that nobody follows."""
    address = printable(api.address)
    return f"`nightshift logs {job_id} --address {address}` follows it, `nightshift stop {job_id} --address {address}` ends it"


class Log:
    """Prints whole lines of what it is fed. On a terminal progress is drawn in place; the run's record is kept, not shown."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._rest = stream, ""
        self._draw: Callable[[str, float | None, str], None] | None = None
        self._print: Callable[[str], Any] = lambda line: print(line, file=stream, flush=True)
        self.record: str | None = None

    def shown(self) -> AbstractContextManager[Any]:
        """Draw on the terminal while the block runs, where there is one."""
        if not (self._stream.isatty() and sys.stderr.isatty()):
            return nullcontext()
        live = Drawing(self._stream)
        self._draw, self._print = live.draw, live.print
        return live

    def feed(self, piece: str) -> None:
        """Take the next piece of the log."""
        *lines, self._rest = (self._rest + piece).split("\n")
        for line in lines:
            self._line(line.rstrip("\r"))

    def end(self) -> None:
        """Show what is left, a line without its end."""
        if self._rest:
            self._line(self._rest)
        self._rest = ""

    def _line(self, line: str) -> None:
        if is_record(line):
            self.record = line
        elif self._draw and (progress := _PROGRESS.fullmatch(line)):
            name, words, done, total = progress.groups()
            share = int(done.replace(",", "")) / max(1, int(total.replace(",", ""))) if total else None
            self._draw(name, share, words)
        else:
            if self._draw:
                self._draw("", None, "")
            self._print(line)


def is_record(line: str) -> bool:
    """Whether a line is what a command prints with --json: a run's record, an estimate, doctor's findings."""
    if not line.startswith(RECORDS):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def show_lines(text: Iterable[str], stream: IO[str]) -> str | None:
    """Print a log that is not followed, and return the run's record in it."""
    log = Log(stream)
    for piece in text:
        log.feed(piece)
    log.end()
    return log.record
