"""What a run does when another one works on the same data set: wait, leave, or work as well (`label.overlap`)."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.console import say
from jobs.limits import Limits
from jobs.runs import STOPPED, Run, utc_now
from pipeline.lease import SILENT_S, Holder, Lease


@contextmanager
def alone(run: Run) -> Iterator[bool]:
    """Hold the data set's lease while the block runs. False: another run has it, this one leaves, and its record says why."""
    overlap = run.config.label.overlap
    if overlap == "work":
        yield True
        return
    lease = Lease(run.store, run.config.dataset, Holder(run.id, socket.gethostname(), utc_now()))
    limits, told = Limits(run.config.label, run.started), False

    def patient(other: Holder) -> bool:
        nonlocal told
        who = f"run {other.run_id} on {other.host}, since {other.started_at}, works on {run.config.dataset}"
        if overlap == "leave":
            run.end(STOPPED, f"{who} (label.overlap: leave)")
            return False
        if limits.passed():
            run.end(STOPPED, f"{limits.reason}, and {who}")
            return False
        if not told:
            say(f"waiting: {who}; this run goes on when that one ends (label.overlap: wait)")
            told = True
        return True

    def met(other: Holder) -> None:
        say(f"run {other.run_id} on {other.host} has this data set; looking for {SILENT_S:.0f} s whether it lives")

    try:
        yield lease.acquire(patient, met)
    finally:
        lease.release()
