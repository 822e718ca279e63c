"""Says that the head of the cluster is gone, before Ray ends this process: nobody can say anything after that.

Ray (2.60) looks for a lost head for RAY_gcs_rpc_server_reconnect_timeout_s, 60 s by default, and then leaves the process with
exit code 1 from a thread of its own: no exception is raised, no `finally` runs, and the run leaves no record.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

EVERY_S = 1.0
MISSED = 3  # knocks in a row: one may meet a head that is only busy


@contextmanager
def watched(address: str) -> Iterator[None]:
    """Knock at the head's port while the block runs; a warning says when nobody opens any more, and when it is back."""
    ended = Event()
    watcher = Thread(target=_watch, args=(address, ended), name="headwatch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(address: str, ended: Event) -> None:
    missed, log = 0, logging.getLogger("nightshift")
    while not ended.wait(EVERY_S):
        if _opens(address):
            if missed >= MISSED:
                log.warning(f"the head of the Ray cluster, {address}, answers again")
            missed = 0
            continue
        missed += 1
        if missed == MISSED:
            log.warning(
                f"the head of the Ray cluster, {address}, does not answer. Unless it comes back within {_patience()} s, Ray ends "
                "this command with exit code 1, and the run leaves no record. What is committed stays: the same command "
                "continues it, on a cluster that runs"
            )


def _patience() -> str:
    return os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60")  # noqa: SIM112 - Ray's own spelling


def _opens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), EVERY_S).close()
    except OSError:
        return False
    return True
