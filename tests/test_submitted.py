import json

import pytest

from cluster import submission
from cluster.submission import Job
from jobs import submitted as module
from jobs.cli import main
from pipeline.errors import NotFoundError

ABOUT = {"command": "nightly", "dataset": "photos"}


class FakeApi:
    """A cluster with these jobs; a stopped one lasts for two more looks."""

    def __init__(self, *jobs):
        self.jobs, self.looks = {job.id: job for job in jobs}, 2

    def __call__(self, address):
        self.address = address
        return self

    def list(self):
        return list(self.jobs.values())

    def find(self, job_id):
        if job_id not in self.jobs:
            raise NotFoundError("knows no such job")
        self.looks -= 1
        job = self.jobs[job_id]
        if job.lasts and self.looks < 0:
            self.jobs[job_id] = Job(job_id, "STOPPED", None, "", 1.0, 4.0, ABOUT)
        return self.jobs[job_id]

    def stop(self, job_id):
        return self.jobs[job_id].lasts

    def logs(self, job_id):
        return 'line\n{"run_id": "n", "exit_code": 3}\n'


@pytest.fixture
def cluster(monkeypatch):
    """Return what stands in for the cluster, with jobs given."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)

    def put(*jobs):
        api = FakeApi(*jobs)
        monkeypatch.setattr(submission, "JobsApi", api)
        return api

    return put


DONE = Job("night", "FAILED", 3, "", 1_795_786_166.0, 1_795_786_256.0, ABOUT)
RUNS = Job("noon", "RUNNING", None, "", 1_795_786_166.0, None, ABOUT)


def test_jobs_are_shown_a_line_each(cluster, capsys):
    api = cluster(DONE, RUNS)
    assert main(["jobs"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["night", "failed", "exit", "3", "nightly", "photos", "2026-11-27T13:29:26+00:00", "1:30"]
    assert second.split()[:4] == ["noon", "running", "nightly", "photos"]
    assert api.address == "http://head:8265"


def test_jobs_as_json(cluster, capsys):
    cluster(DONE, RUNS, Job("later", "PENDING", None, "", None, None, ABOUT))
    assert main(["jobs", "--json"]) == 0
    done, runs, waits = json.loads(capsys.readouterr().out)
    assert done == {
        "job": "night", "status": "failed", "exit_code": 3, "command": "nightly", "dataset": "photos",
        "started_at": "2026-11-27T13:29:26+00:00", "seconds": 90.0,
    }  # fmt: skip
    assert (runs["exit_code"], waits["started_at"], waits["seconds"]) == (None, None, None)


def test_no_jobs_is_said(cluster, capsys):
    cluster()
    assert main(["jobs"]) == 0
    assert "no jobs of nightshift" in capsys.readouterr().err


def test_a_log_that_is_not_followed_ends_with_the_jobs_exit_code(cluster, capsys):
    cluster(DONE, RUNS)
    assert main(["logs", "night", "--no-wait"]) == 3
    assert capsys.readouterr().out == "line\n"
    assert main(["logs", "noon", "--no-wait", "--json"]) == 0, "it runs"
    assert main(["logs", "night", "--no-wait", "--json"]) == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run_id"] == "n"


@pytest.mark.parametrize("command", ["logs", "stop"])
@pytest.mark.parametrize("name", ["", "../version", "a b"])
def test_what_is_no_id_is_refused(cluster, capsys, command, name):
    cluster(DONE)
    assert main([command, name]) == 2
    assert "is no id of a job" in capsys.readouterr().err


def test_stop_waits_for_the_end(cluster, capsys):
    api = cluster(RUNS)
    assert main(["stop", "noon"]) == 0
    assert "job noon: stopped" in capsys.readouterr().err
    assert not api.jobs["noon"].lasts


def test_stop_does_not_wait_when_told(cluster, capsys):
    cluster(RUNS)
    assert main(["stop", "noon", "--no-wait", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "running"


def test_what_has_ended_is_not_stopped(cluster, capsys):
    cluster(DONE)
    assert main(["stop", "night"]) == 0
    assert "job night: failed already" in capsys.readouterr().err
