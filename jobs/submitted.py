"""`nightshift jobs`, `logs` and `stop`: what was submitted to a cluster."""

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobs.console import clock, say
from jobs.following import conclude, exit_code, show_lines, watch
from jobs.submit import address_of, check_id

if TYPE_CHECKING:
    from cluster.submission import Job

LOOK_EVERY_S = 1.0


def show(address: str | None, as_json: bool) -> int:
    """List the cluster's jobs."""
    from cluster.submission import JobsApi

    jobs = JobsApi(address_of(address)).list()
    if as_json:
        print(json.dumps([_facts(job) for job in jobs]))
        return 0
    for job in jobs:
        facts = _facts(job)
        code = "" if facts["exit_code"] is None else f"exit {facts['exit_code']}"
        took = clock(facts["seconds"]) if facts["seconds"] is not None else "-"
        print(f"{job.id:<32} {job.status.lower():<10} {code:<7} {facts['command']:<10} {facts['dataset']:<20} "
              f"{facts['started_at'] or '-':<20} {took}")  # fmt: skip
    if not jobs:
        say("no jobs of nightshift; `nightshift submit nightly CONFIG` submits one")
    return 0


def logs(address: str | None, job_id: str, follow: bool, as_json: bool) -> int:
    """Show a job's log; with `follow` to its end, whose exit code is returned."""
    from cluster.submission import JobsApi

    check_id(job_id)
    api = JobsApi(address_of(address))
    job = api.find(job_id)
    if follow:
        return watch(api, job_id, as_json)
    record = show_lines([api.logs(job_id)], sys.stderr if as_json else sys.stdout)
    if not job.lasts:
        return conclude(job, as_json, record)
    if as_json:
        print(json.dumps(_facts(job)))
    return 0


def stop(address: str | None, job_id: str, wait: bool, as_json: bool) -> int:
    """Ask a job to end, and wait until it has."""
    from cluster.submission import STOPPING_S, JobsApi

    check_id(job_id)
    api = JobsApi(address_of(address))
    asked = api.stop(job_id)
    if asked and wait:
        say(f"job {job_id} is asked to end: it has {STOPPING_S} s to write its record")
        while api.find(job_id).lasts:
            time.sleep(LOOK_EVERY_S)
    job = api.find(job_id)
    if as_json:
        print(json.dumps(_facts(job)))
    else:
        say(f"job {job_id}: {job.status.lower()}" + ("" if asked else " already"))
    return 0


def _facts(job: "Job") -> dict[str, Any]:
    ended = job.ended or (time.time() if job.lasts else None)
    return {
        "job": job.id,
        "status": job.status.lower(),
        "exit_code": None if job.lasts else exit_code(job),
        "command": job.about.get("command", "-"),
        "dataset": job.about.get("dataset", "-"),
        "started_at": datetime.fromtimestamp(job.started, UTC).isoformat(timespec="seconds") if job.started else None,
        "seconds": round(ended - job.started, 1) if job.started and ended else None,
    }
