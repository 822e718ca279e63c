import contextlib
import os
import re
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError, RaySystemError

from cluster import session as module
from cluster.checkout import program
from cluster.session import session
from pipeline.errors import TransientError, UsageError
from pipeline.settings import ClusterSettings


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    """What FakeRay starts has no head to knock at."""
    monkeypatch.setattr(module, "watched", lambda address: contextlib.nullcontext())


class FakeRay:
    """A ray that starts nothing, and puts its own answer to SIGTERM in place as the real one does."""

    def __init__(self, error=None):
        self.error, self.started, self.shutdowns, self.there = error, [], 0, None
        self.while_starting = lambda: None

    def is_initialized(self):
        return False

    def init(self, **options):
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))
        self.started.append(options)
        self.while_starting()
        if self.error:
            raise self.error

    def shutdown(self):
        self.shutdowns += 1

    def get_runtime_context(self):
        return type("Context", (), {"gcs_address": "127.0.0.1:1"})()

    def remote(self, **options):
        return lambda function: type("Remote", (), {"remote": lambda self: function})()

    def get(self, function):
        if isinstance(self.there, Exception):
            raise self.there
        return self.there or function()


@pytest.fixture
def fake(monkeypatch):
    """Ray that starts nothing, with an environment that is put back."""
    monkeypatch.setattr(module.os, "environ", dict(os.environ))
    ray = FakeRay()
    monkeypatch.setattr(module, "ray", ray)
    return ray


@pytest.fixture
def open_port():
    """A port of this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port():
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_session_that_runs_is_joined_and_left_running(ray_session):
    import ray

    with session(ClusterSettings(num_cpus=99)):
        assert ray.cluster_resources()["CPU"] == 4
    assert ray.is_initialized()


def test_a_session_of_its_own_ends_with_the_block(fake):
    with session(ClusterSettings(num_cpus=3)):
        assert fake.shutdowns == 0
    assert (fake.started[0]["num_cpus"], fake.started[0]["include_dashboard"], fake.shutdowns) == (3, False, 1)
    assert module.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert module.os.environ["MALLOC_MMAP_THRESHOLD_"] == "4194304"
    assert (module.os.environ["MALLOC_TRIM_THRESHOLD_"], module.os.environ["MALLOC_ARENA_MAX"]) == ("16777216", "4")


def test_a_machine_too_busy_for_ray_is_said(fake):
    fake.error = Exception("The current node timed out during startup.\nmore")
    with (
        pytest.raises(
            TransientError, match=r"cannot start a session on this machine \(The current node .* startup\.\)"
        ),
        session(ClusterSettings()),
    ):
        pytest.fail("there is no session")
    assert fake.shutdowns == 1


def test_a_session_ends_when_the_block_fails(fake):
    with pytest.raises(ValueError, match="inside"), session(ClusterSettings()):
        raise ValueError("inside")
    assert fake.shutdowns == 1


def test_a_start_that_is_interrupted_leaves_no_processes(fake):
    fake.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), session(ClusterSettings()):
        pass
    assert fake.shutdowns == 1


def test_sigterm_keeps_its_meaning(fake):
    before = signal.getsignal(signal.SIGTERM)
    with session(ClusterSettings()):
        assert signal.getsignal(signal.SIGTERM) is before, "ray.init replaces it by an exit without a record"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ray_starts_takes_effect_when_it_has_started(fake, number):
    def stops(signum, frame):
        raise KeyboardInterrupt

    before, seen = signal.signal(number, stops), []
    fake.while_starting = lambda: (signal.raise_signal(number), seen.append("went on"))
    try:
        with pytest.raises(KeyboardInterrupt), session(ClusterSettings()):
            seen.append("worked")
    finally:
        signal.signal(number, before)
    assert seen == (["went on"] if number == signal.SIGINT else []), "for SIGTERM Ray decides: it leaves at once"
    assert fake.shutdowns == 1


def test_workers_of_a_cluster_with_other_code_are_refused_with_both_paths(fake, open_port):
    fake.there = replace(program(), root="/elsewhere/nightshift")
    here = str(Path(module.__file__).resolve().parent.parent)
    with pytest.raises(UsageError) as raised, session(ClusterSettings(address=f"127.0.0.1:{open_port}")):
        pass
    assert "/elsewhere/nightshift" in str(raised.value)
    assert here in str(raised.value)
    assert fake.shutdowns == 1


def test_workers_without_nightshift_are_refused(fake, open_port):
    fake.there = RaySystemError("Traceback ...\nModuleNotFoundError: No module named 'cluster'")
    with (
        pytest.raises(UsageError, match=r"No module named 'cluster'.*; install this checkout"),
        session(ClusterSettings(address=f"127.0.0.1:{open_port}")),
    ):
        pass
    assert fake.shutdowns == 1


def test_a_cluster_is_joined_at_its_address(fake, open_port):
    with session(ClusterSettings(address=f"ray://127.0.0.1:{open_port}")):
        pass
    environment = {"env_vars": module.WORKER_ENVIRONMENT}
    address = f"ray://127.0.0.1:{open_port}"
    assert fake.started == [{"address": address, "logging_level": "ERROR", "runtime_env": environment}]


def test_a_submitted_job_has_its_environment_already(fake, open_port):
    module.os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"
    with session(ClusterSettings(address=f"127.0.0.1:{open_port}")):
        pass
    assert fake.started[0]["runtime_env"] is None


def test_a_dashboard_is_not_joined_but_submitted_to(fake):
    with (
        pytest.raises(UsageError, match="is a cluster's dashboard, which takes submitted jobs: `nightshift submit"),
        session(ClusterSettings(address="http://head:8265")),
    ):
        pytest.fail("there is no session")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_without_asking_ray(fake, closed_port, scheme):
    address = f"{scheme}127.0.0.1:{closed_port}"
    words = rf"cluster.address: no Ray cluster can be joined at {address} \(.*refused\); start it there"
    with pytest.raises(UsageError, match=words), session(ClusterSettings(address=address)):
        pass
    assert fake.started == []


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Could not find any running Ray instance"),
        ValueError("Invalid address format: auto"),
        RuntimeError("Version mismatch: the cluster was started with 2.1"),
        AuthenticationError("InvalidAuthToken"),
    ],
)
def test_what_ray_says_about_an_address_is_passed_on(fake, error):
    fake.error = error
    with pytest.raises(UsageError, match=re.escape(str(error))), session(ClusterSettings(address="auto")):
        pass


@pytest.mark.parametrize(
    ("environment", "home", "given"),
    [
        ({}, "/nonexistent", True),
        ({}, "/tmp", False),
        ({"RAY_AUTH_TOKEN": "mine"}, "/nonexistent", False),
        ({"RAY_AUTH_TOKEN_PATH": "/mine"}, "/nonexistent", False),
    ],
)
def test_a_home_that_cannot_be_written_needs_no_token_file(fake, environment, home, given):
    for key in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        module.os.environ.pop(key, None)
    module.os.environ.update(environment, HOME=home)
    with session(ClusterSettings()):
        pass
    token = module.os.environ.get("RAY_AUTH_TOKEN", "mine")
    assert (len(token) == 64) is given
