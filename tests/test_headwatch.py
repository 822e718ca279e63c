"""The watch over the head: it says once that nobody answers, and that somebody does again."""

import socket

import pytest
from test_chaos import wait_until

from cluster import headwatch
from cluster.headwatch import watched


def listening(port=0):
    return socket.create_server(("127.0.0.1", port))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(headwatch, "EVERY_S", 0.02)


def test_a_head_that_goes_and_comes_back_is_said_once_each(caplog):
    head = listening()
    port = head.getsockname()[1]
    with watched(f"127.0.0.1:{port}"):
        head.close()
        wait_until(lambda: "does not answer" in caplog.text, "the warning")
        with listening(port):
            wait_until(lambda: "answers again" in caplog.text, "the other")
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "the same command continues it" in caplog.text


def test_it_says_how_long_ray_looks_for_it(caplog, monkeypatch):
    with listening() as gone:
        port = gone.getsockname()[1]
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "7")
    with watched(f"127.0.0.1:{port}"):
        wait_until(lambda: caplog.records, "the warning")
    assert "within 7 s" in caplog.text


def test_a_head_that_answers_is_not_spoken_of(caplog):
    with listening() as head, watched(f"127.0.0.1:{head.getsockname()[1]}"):
        for _ in range(5):
            head.accept()[0].close()
    assert not caplog.records
