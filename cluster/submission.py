"""The Jobs API of a Ray cluster, over HTTP: submit, find, list, follow and stop jobs. Nothing here joins the cluster."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.dashboard import connect, in_words
from cluster.session import WORKER_ENVIRONMENT
from pipeline.errors import TransientError
from pipeline.refusals import first_line

SILENCE_S = 20.0  # nothing in the log for so long: the connection may be dead, so it is opened again
PATIENCE_S = 60.0  # a head that has just started takes no jobs yet
LOST_S = 600.0  # the dashboard is away for so long: longer than a head needs to come back
PAUSE_S = 2.0
# What ends a job: it writes its record and publishes what is whole. Ray's own three seconds would cut that short.
STOPPING_S = 120
LASTING = ("PENDING", "RUNNING")
_OWN = "nightshift."


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it. Times are seconds since 1970, `about` what it was submitted with."""

    id: str
    status: str
    exit_code: int | None
    message: str
    started: float | None
    ended: float | None
    about: Mapping[str, str]

    @property
    def lasts(self) -> bool:
        """Whether it waits or runs."""
        return self.status in LASTING


class JobsApi:
    """The jobs of the cluster whose dashboard is at a URL. All methods raise what `dashboard.in_words` says."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        for name in ("dashboard_sdk", "job.sdk"):  # "Uploading package", "WebSocket closed"
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        self._client = connect(self.address)

    @property
    def ray_version(self) -> str:
        """Version of Ray on the cluster's head."""
        return str(self._client._server_ray_version)

    def submit(
        self, job_id: str, entrypoint: str, package: Path, environment: Mapping[str, str], about: Mapping[str, str],
        said: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Start a job whose working directory is what the zip file `package` holds; AlreadyExistsError when its id is taken.

        A head that cannot take it now is asked again for a minute, which `said` is told.
        """
        own = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOPPING_S), **WORKER_ENVIRONMENT}
        end, told = time.monotonic() + PATIENCE_S, False
        while True:
            try:
                with in_words(self.address):
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        submission_id=job_id,
                        runtime_env={"working_dir": str(package), "env_vars": own | dict(environment)},
                        metadata={f"{_OWN}{key}": value for key, value in about.items()},
                    )
                return
            except TransientError as error:
                if time.monotonic() > end:
                    raise
                if not told:
                    said(f"{error}; trying again for {PATIENCE_S:.0f} s")
                told = True
                time.sleep(PAUSE_S)

    def find(self, job_id: str) -> Job:
        """Return a job; NotFoundError when the cluster has none of this id."""
        with in_words(self.address):
            return _job(self._client.get_job_info(job_id))

    def list(self) -> list[Job]:
        """Return the jobs that nightshift submitted, oldest first."""
        with in_words(self.address):
            details = self._client.list_jobs()
            jobs = [_job(each) for each in details if each.submission_id and _OWN + "command" in (each.metadata or {})]
        return sorted(jobs, key=lambda job: job.started or float("inf"))

    def stop(self, job_id: str) -> bool:
        """Ask a job to end; False when it had ended already."""
        with in_words(self.address):
            return bool(self._client.stop_job(job_id))

    def logs(self, job_id: str) -> str:
        """Return what a job has logged so far."""
        with in_words(self.address):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, show: Callable[[str], None], said: Callable[[str], None]) -> Job:
        """Show a job's log from its first line, piece by piece, and return the job when it has ended.

        A connection that breaks is opened again, and nothing is shown twice. Where only the log cannot be followed, such
        as behind a proxy that knows no websockets, it is asked for every few seconds.

        Parameters
        ----------
        said : Callable[[str], None]
            Told what there is to say meanwhile: the job waits, the dashboard is gone or back.

        Raises
        ------
        TransientError
            When the dashboard did not answer for ten minutes.
        """
        log, lost, waiting = _Shown(show), None, False
        while True:
            try:
                whole = self._tail(job_id, log)
                job = self.find(job_id)
                if not whole:
                    self._catch_up(job_id, log)
            except TransientError as error:
                if lost is None:
                    said(f"{error}; trying again")
                    lost = time.monotonic()
                if time.monotonic() - lost > LOST_S:
                    raise
                time.sleep(PAUSE_S)
                continue
            if lost is not None:
                said("the connection is back")
                lost = None
            if not job.lasts:
                return job
            if job.status == "PENDING" and not waiting:
                waiting = True
                said(f"waiting for the cluster to start the job: {first_line(Exception(job.message))}")
            time.sleep(PAUSE_S)

    def _tail(self, job_id: str, log: "_Shown") -> bool:
        """Show the log as it grows; return whether it has ended, False when it was silent for long or cannot be followed."""
        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(job_id)
        log.rewind()
        try:
            while True:
                try:
                    with in_words(self.address):
                        piece = loop.run_until_complete(asyncio.wait_for(anext(pieces), SILENCE_S))
                except StopAsyncIteration:
                    return True
                except (TimeoutError, TransientError):
                    return False
                log.add(piece)
        finally:
            loop.run_until_complete(_close(pieces))
            loop.close()

    def _catch_up(self, job_id: str, log: "_Shown") -> None:
        with suppress(TransientError):  # a log that cannot be read is no reason to lose the job
            text = self.logs(job_id)
            log.rewind()
            log.add(text)


class _Shown:
    """A log that is read from its start again and again, and shown once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._shown, self._position = show, 0, 0

    def rewind(self) -> None:
        """The next piece is the log's first."""
        self._position = 0

    def add(self, piece: str) -> None:
        """Show what is new in a piece."""
        fresh = piece[max(0, self._shown - self._position) :]
        self._position += len(piece)
        if fresh:
            self._shown = self._position
            self._show(fresh)


async def _close(pieces: AsyncGenerator[str]) -> None:
    """End a connection that somebody may still wait at: Ctrl-C came."""
    waiting = asyncio.all_tasks() - {asyncio.current_task()}
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await pieces.aclose()


def _job(details: Any) -> Job:
    started, ended = (at / 1000 if at else None for at in (details.start_time, details.end_time))
    about = {k.removeprefix(_OWN): v for k, v in (details.metadata or {}).items() if k.startswith(_OWN)}
    return Job(
        details.submission_id,
        str(details.status),
        details.driver_exit_code,
        details.message or "",
        started,
        ended,
        about,
    )
