"""The record of a run: what was asked, what came of it, how it ended. Written to the store however the run ends."""

import os
import re
import sys
import traceback
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, date, datetime
from time import monotonic
from typing import Any

from jobs.closing import closing
from jobs.config import Config
from jobs.console import say
from jobs.notify import notify
from pipeline import layout
from pipeline.counts import Counts
from pipeline.documents import Document, encode, read_document
from pipeline.errors import NightshiftError, NotFoundError, StorageError, TransientError, UsageError
from pipeline.libraries import library_versions
from pipeline.refusals import printable
from pipeline.storage import Storage

OK, FAILED, USAGE, HELD, NOTHING_NEW, STOPPED = range(6)
OUTCOMES = {
    OK: "complete",
    FAILED: "failed",
    USAGE: "refused: the command, the config or the input must be corrected",
    HELD: "finished, but held back or incomplete",
    NOTHING_NEW: "nothing new, although the config requires it",
    STOPPED: "stopped early; the same command continues it",
}
GRAVITY = (
    OK,
    NOTHING_NEW,
    HELD,
    STOPPED,
    USAGE,
    FAILED,
)  # a run with a broken input file that is then stopped was stopped
READS_AT_ONCE = 16
LIBRARIES = ("nightshift", "ray", "torch", "torchvision", "pyarrow", "pillow")


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Run:
    """A run in progress: its record as it grows."""

    def __init__(self, command: str, config: Config, run_id: str | None) -> None:
        self.config, self.store = config, config.open_store()
        self.started = datetime.now(UTC)
        self.id = run_id or _name(command, self.started, config.date)
        if run_id is not None:
            _check_name(self.store, run_id)
        self._started, self._session, self._joined = monotonic(), ExitStack(), False
        self.record: dict[str, Any] = {
            "run_id": self.id, "command": command, "dataset": config.dataset, "started_at": utc_now(),
            "date": str(config.date) if config.date else None, "images_in": 0, "labelled": 0, "quarantined": 0,
            "skipped": 0, "remaining": 0, "failed_shards": 0, "images_per_s": None,
            "model": None, "fingerprint": None, "exit_code": OK, "failures": [], "failed_files": [], "stages": [],
            "retries": {}, "time_shares": {},
            "view": None, "night": None, "checks": None,
            "review": None, "engines": [], "config": without_secrets(config.model_dump(mode="json")),
            "versions": library_versions(LIBRARIES),
        }  # fmt: skip

    def start_cluster(self) -> None:
        """Start or join the Ray session, once, when there is work for it: a run with nothing to do needs none."""
        from cluster.session import session

        if not self._joined:
            self._session.enter_context(session(self.config.cluster))
            self._joined = True

    def leave_cluster(self) -> None:
        """End the session if this run started it."""
        self._session.close()

    def note(self, **values: Any) -> None:
        """Set fields of the record."""
        self.record.update(values)

    def stage(self, name: str, seconds: float, images: int) -> None:
        """Record the time of a stage."""
        self.record["stages"].append({"name": name, "seconds": round(seconds, 3), "images": images})

    def count(self, counts: Counts) -> None:
        """Record what this run worked on."""
        self.note(images_in=counts.images_in, labelled=counts.labelled, quarantined=counts.quarantined)

    def end(self, exit_code: int, reason: str = "") -> None:
        """Settle how the run ended; of several endings the gravest counts, of equals the first."""
        if GRAVITY.index(exit_code) > GRAVITY.index(self.record["exit_code"]):
            outcome = OUTCOMES[exit_code] + (f": {printable(reason)}" if reason else "")
            self.note(exit_code=exit_code, outcome=outcome)

    def save(self) -> None:
        """Write run.json; AlreadyExistsError when another run of this name wrote its own meanwhile."""
        self.record.setdefault("outcome", OUTCOMES[OK])
        self.note(finished_at=utc_now(), seconds=round(monotonic() - self._started, 3))
        self.store.create(f"{layout.run(self.id)}/run.json", encode(self.record))


def _name(command: str, started: datetime, logical: date | None) -> str:
    """Return a run's own name: with a logical date in front, by which the reruns of one night are found."""
    at, chance = f"{started:%Y%m%dT%H%M%S}", uuid.uuid4().hex[:4]
    return f"{logical}-{command}-{at}-{chance}" if logical else f"{at}-{command}-{chance}"


def _check_name(store: Storage, run_id: str) -> None:
    """Refuse a run id that is no plain name, or that an earlier run has: its record is history."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
        raise UsageError(
            f"--run-id {run_id!r}: expected a name of letters, digits, dots, dashes and underscores that starts with a "
            "letter or a digit, such as 2026-11-24-night"
        )
    with suppress(NotFoundError):
        store.stat(f"{layout.run(run_id)}/run.json")
        raise UsageError(
            f"--run-id {run_id}: the store has a run of this name, and its record is not overwritten; choose another name, "
            "or leave --run-id out"
        )


def without_secrets(value: Any) -> Any:
    """Return a config without what may be a credential in a URL: user and password, and the query (signatures, tokens)."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, str) or "://" not in value:
        return value
    return re.sub(r"\?.*$", "?***", re.sub(r"://[^/@]*@", "://***@", value))


def read_runs(store: Storage) -> list[Document]:
    """Return the records of all runs, oldest first; records that cannot be read are left out."""
    paths = [entry.path for entry in store.list("runs") if entry.path.endswith("/run.json")]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = [
            record for record in pool.map(lambda path: _record(store, path), paths) if record and "started_at" in record
        ]
    return sorted(found, key=lambda record: str(record["started_at"]))


def _record(store: Storage, path: str) -> Document | None:
    try:
        return read_document(store, path)
    except StorageError:
        return None


def execute(run: Run, work: Callable[[Run], None]) -> int:
    """Do the work of a run, record how it ended in the store, say so, and return the exit code."""
    perform(run, work)
    try:
        run.save()
    except (StorageError, TransientError) as error:
        say(f"the run's record cannot be written: {error}")
        run.end(FAILED, "the store cannot be written")
    for line in closing(run.record, run.store.url):
        say(line)
    notify(run.record, run.config.notify)
    return conclude(run)


def perform(run: Run, work: Callable[[Run], None]) -> None:
    """Do the work of a run and settle how it ended; nothing is recorded in the store."""
    try:
        work(run)
    except KeyboardInterrupt:
        run.end(STOPPED)
    except NightshiftError as error:
        run.end(error.exit_code, str(error))
    except Exception as error:  # the last door: a defect of ours still leaves a record behind
        run.end(FAILED, f"{type(error).__name__}: {error}")
        if os.environ.get("NIGHTSHIFT_DEBUG"):
            traceback.print_exc()
    run.leave_cluster()


def conclude(run: Run) -> int:
    """Say how a run ended unless all is well, and return the exit code."""
    code: int = run.record["exit_code"]
    if code != OK:
        say(f"nightshift {run.record['command']}: {run.record['outcome']}")
    sys.stderr.flush()
    return code
