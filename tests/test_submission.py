import asyncio
import itertools
from types import SimpleNamespace

import aiohttp
import pytest
import requests

from cluster import submission as module
from cluster.submission import JobsApi
from pipeline.errors import NotFoundError, TransientError, UsageError


class FakeClient:
    """Ray's client: what each call answers or raises, in order. A tail is a list of pieces, perhaps with an error at its end."""

    def __init__(self, **answers):
        self.answers = {name: iter(values) for name, values in answers.items()}
        self.asked, self._server_ray_version = [], "2.60.0"

    def __getattr__(self, name):
        def call(*arguments, **keywords):
            self.asked.append((name, arguments, keywords))
            answer = next(self.answers[name])
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    async def tail_job_logs(self, job_id):
        self.asked.append(("tail", (job_id,), {}))
        for piece in next(self.answers["tail"]):
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                await asyncio.sleep(3600)
            yield piece


def info(status, code=None, **more):
    return SimpleNamespace(
        submission_id="night", status=status, driver_exit_code=code, message="m", start_time=1000, end_time=None,
        metadata={"nightshift.command": "nightly", "other": "x"}, **more,
    )  # fmt: skip


@pytest.fixture
def connect(monkeypatch):
    """Return what makes a JobsApi over a fake client; pauses take no time."""

    def connect(**answers):
        client = FakeClient(**answers)
        monkeypatch.setattr(module, "connect", lambda address: client)
        monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
        return JobsApi("http://head:8265/"), client

    return connect


LOST = requests.ConnectionError("gone")


@pytest.fixture
def follow(connect):
    """Return what follows a log over a fake client: what was shown, what was said, the job, and the client."""

    def follow(**answers):
        api, client = connect(**answers)
        shown, said = [], []
        job = api.follow("night", shown.append, said.append)
        return SimpleNamespace(shown=shown, text="".join(shown), said=said, job=job, client=client)

    return follow


def test_a_log_is_followed_to_the_end_of_the_job(follow):
    found = follow(tail=[["one\n", "two\n"]], get_job_info=[info("FAILED", 3)])
    assert (found.shown, found.said, found.job.exit_code) == (["one\n", "two\n"], [], 3)


def test_a_broken_connection_is_opened_again_and_nothing_comes_twice(follow):
    tails = [["one\ntw", aiohttp.ClientConnectionError()], [], ["one\n", "two\nth"], ["one\n", "two\nthree"]]
    found = follow(
        tail=tails, get_job_info=[LOST, info("RUNNING"), info("RUNNING"), info("FAILED", 1)], get_job_logs=[]
    )
    assert found.text == "one\ntwo\nthree"
    assert [words.split(" at ")[0] for words in found.said] == ["no Ray dashboard answers", "the connection is back"]


def test_a_silent_connection_is_opened_again(follow, monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.01)
    found = follow(
        tail=[["one\n", None], ["one\n", "two\n"]], get_job_info=[info("RUNNING"), info("SUCCEEDED", 0)],
        get_job_logs=["one\n"],
    )  # fmt: skip
    assert found.shown == ["one\n", "two\n"]
    assert [name for name, *_ in found.client.asked].count("tail") == 2


def test_what_comes_with_the_end_of_a_silence_is_not_lost(follow, monkeypatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.01)
    found = follow(tail=[["one\n", None]], get_job_info=[info("SUCCEEDED", 0)], get_job_logs=["one\nlast\n"])
    assert found.shown == ["one\n", "last\n"]


def refused(status):
    return aiohttp.WSServerHandshakeError(None, (), status=status)


BROKEN = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


@pytest.mark.parametrize("trouble", [refused(502), BROKEN, aiohttp.ClientConnectionError()])
def test_where_a_log_cannot_be_followed_it_is_asked_for(follow, trouble):
    found = follow(
        tail=itertools.repeat([trouble]), get_job_info=[info("RUNNING"), info("RUNNING"), info("SUCCEEDED", 0)],
        get_job_logs=["one\n", RuntimeError("Request failed with status code 500: no"), "one\ntwo\n"],
    )  # fmt: skip
    assert (found.shown, found.said, found.job.status) == (["one\n", "two\n"], [], "SUCCEEDED")


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (401, UsageError), (403, UsageError)])
def test_a_head_that_has_forgotten_the_job_or_its_token_ends_the_following(follow, status, error):
    with pytest.raises(error):
        follow(tail=[[refused(status)]])


def test_a_dashboard_that_stays_away_is_given_up(connect, monkeypatch):
    api, _ = connect(tail=itertools.repeat([LOST]), get_job_info=itertools.repeat(LOST))
    clock = itertools.count(0, 100)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    said = []
    with pytest.raises(TransientError, match="no Ray dashboard answers at http://head:8265"):
        api.follow("night", pytest.fail, said.append)
    assert len(said) == 1


def test_a_job_that_waits_is_told_once(follow):
    found = follow(tail=[[], [], ["x"]], get_job_info=[info("PENDING"), info("PENDING"), info("SUCCEEDED", 0)])
    assert found.shown == ["x"]
    assert found.said == ["waiting for the cluster to start the job: m"]


def test_ctrl_c_in_a_silence_closes_the_connection(connect, monkeypatch):
    closed = []

    class Silent:
        def __aiter__(self):
            return self

        async def __anext__(self):
            try:
                asyncio.get_running_loop().call_later(0.01, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                closed.append("cancelled")
                raise

        async def aclose(self):
            closed.append("closed")

    api, client = connect()
    monkeypatch.setattr(type(client), "tail_job_logs", lambda self, job_id: Silent())
    with pytest.raises(KeyboardInterrupt):
        api.follow("night", pytest.fail, pytest.fail)
    assert closed == ["cancelled", "closed"]


STARTING = RuntimeError(
    "Request failed with status code 500: No available agent to submit job, please try again later."
)


def test_a_head_that_takes_no_jobs_yet_is_asked_again(connect, tmp_path):
    api, client = connect(submit_job=[STARTING, LOST, "night"])
    said = []
    api.submit("night", "exec true", tmp_path / "p.zip", {"A": "1"}, {"command": "nightly"}, said.append)
    assert said == [
        "http://head:8265 cannot answer now: No available agent to submit job, please try again later; trying again for 60 s"
    ]
    asked = client.asked[-1][2]
    assert len(client.asked) == 3
    assert (asked["submission_id"], asked["entrypoint"]) == ("night", "exec true")
    assert asked["metadata"] == {"nightshift.command": "nightly"}
    assert asked["runtime_env"]["working_dir"] == str(tmp_path / "p.zip")
    given = asked["runtime_env"]["env_vars"]
    assert (given["A"], given["RAY_JOB_STOP_WAIT_TIME_S"], given["MALLOC_ARENA_MAX"]) == ("1", "120", "4")


def test_and_not_for_ever(connect, tmp_path, monkeypatch):
    api, _ = connect(submit_job=itertools.repeat(STARTING))
    clock = itertools.count(0, 25)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with pytest.raises(TransientError, match=r"cannot answer now.*No available agent"):
        api.submit("night", "exec true", tmp_path, {}, {}, lambda words: None)


def test_jobs_are_listed_oldest_first_and_only_ours(connect):
    later, foreign, driver = info("RUNNING"), info("RUNNING"), info("RUNNING")
    later.start_time, later.submission_id = 2000, "later"
    foreign.metadata, driver.submission_id = {}, None
    api, _ = connect(list_jobs=[[later, foreign, driver, info("SUCCEEDED", 0)]])
    jobs = api.list()
    assert [(job.id, job.lasts, job.started) for job in jobs] == [("night", False, 1.0), ("later", True, 2.0)]
    assert jobs[0].about == {"command": "nightly"}
