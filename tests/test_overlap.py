import json
import threading
import time
from dataclasses import asdict

import pytest
from conftest import published

from pipeline import lease as module
from pipeline.lease import Holder


@pytest.fixture
def other(night, monkeypatch):
    """Another run that holds the lease and shows that it lives until `end()`."""
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    ended = threading.Event()

    def beat():
        number = 0
        while not ended.wait(0.02):
            number += 1
            night.store.write("leases/data.json", json.dumps(asdict(Holder("other", "far", "then", number))).encode())
        night.store.delete("leases/data.json")

    beater = threading.Thread(target=beat)
    beater.start()
    while not list(night.store.list("leases")):
        time.sleep(0.01)
    yield ended.set
    ended.set()
    beater.join()


@pytest.mark.parametrize("command", ["label", "nightly"])
def test_the_second_night_leaves_and_says_who_works(night, nightshift, local_ray, other, command):
    night.write("a.parquet", range(10))
    night.seal()
    ended = nightshift(night.config(label={"overlap": "leave"}), command)
    assert ended.code == 5
    assert "run other on far, since then, works on data (label.overlap: leave)" in ended.record["outcome"]
    assert not list(night.store.list("labels"))


def test_the_second_night_waits_and_then_labels(night, nightshift, local_ray, other):
    night.write("a.parquet", range(10))
    night.seal()
    threading.Timer(0.5, other).start()
    ended = nightshift(night.config(), "nightly")
    assert (ended.code, ended.record["labelled"]) == (0, 10)
    assert ended.said.count("waiting: run other on far") == 1
    assert [row[0] for row in published(night.store, "data")] == list(range(10))
    assert not list(night.store.list("leases"))


def test_a_deadline_ends_the_wait(night, nightshift, local_ray, other):
    night.write("a.parquet", range(10))
    night.seal()
    ended = nightshift(night.config(label={"deadline": "1s"}), "nightly")
    assert ended.code == 5
    assert "label.deadline = 1s passed" in ended.record["outcome"]
    assert "run other on far" in ended.record["outcome"]


def test_a_run_may_work_beside_another(night, nightshift, local_ray, other):
    night.write("a.parquet", range(10))
    night.seal()
    ended = nightshift(night.config(label={"overlap": "work"}), "nightly")
    assert (ended.code, ended.record["labelled"]) == (0, 10)


def test_a_run_that_fails_gives_the_lease_back(night, nightshift, local_ray):
    night.write("a.parquet", range(10))
    ended = nightshift(night.config(), "nightly")  # there is no model
    assert ended.code == 2
    assert not list(night.store.list("leases"))
