import json
import time
from dataclasses import asdict

import pytest

from pipeline import lease as module
from pipeline.errors import StorageError, StoreFullError, TransientError
from pipeline.lease import SILENT_S, Holder, Lease

PATH = "leases/photos.json"


class World:
    """A store, and time that passes only when somebody sleeps; `meanwhile` is called after each pause."""

    def __init__(self, store):
        self.store, self.now, self.meanwhile = store, 0.0, lambda: None

    def lease(self, run_id):
        return Lease(self.store, "photos", Holder(run_id, "host", "then"), lambda: self.now, self.sleep)

    def sleep(self, seconds):
        self.now += seconds
        self.meanwhile()

    def put(self, run_id, beat=0, started_at="then"):
        self.store.write(PATH, json.dumps(asdict(Holder(run_id, "host", started_at, beat))).encode())

    @property
    def holder(self):
        try:
            return json.loads(self.store.read(PATH))["run_id"]
        except StorageError:
            return None


@pytest.fixture
def world(night):
    return World(night.store)


def test_a_free_lease_is_taken_and_given_back(world):
    lease = world.lease("a")
    assert lease.acquire(pytest.fail)
    assert world.holder == "a"
    lease.release()
    assert world.holder is None


def test_who_finds_a_living_holder_is_asked_whether_to_wait(world):
    world.put("other")
    beats = iter(range(1, 1000))
    world.meanwhile = lambda: world.put("other", next(beats))
    asked = []
    met = []
    assert not world.lease("a").acquire(lambda other: asked.append(other.run_id) or len(asked) < 60, met.append)
    assert asked == ["other"] * 60
    assert [other.run_id for other in met] == ["other"]
    assert world.now > SILENT_S, "who lives is waited for as long as it takes"
    assert world.holder == "other"


def test_nobody_is_asked_before_the_holder_has_shown_that_it_lives(world):
    world.put("other")
    world.meanwhile = lambda: world.put("other", int(world.now > 4))
    assert not world.lease("a").acquire(lambda other: False)
    assert 4 < world.now < 7


def test_a_lease_that_is_given_back_is_taken_at_once(world):
    world.put("other")
    beats = iter(range(1, 1000))

    def ends():
        if world.now < 10:
            world.put("other", next(beats))
        else:
            world.store.delete(PATH)

    world.meanwhile = ends
    lease = world.lease("a")
    assert lease.acquire(lambda other: True)
    assert world.now < 12
    assert world.holder == "a"
    lease.release()


@pytest.mark.parametrize("started_at", ["1999-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"])
def test_a_silent_holder_is_gone_whatever_its_clock_says(world, started_at):
    world.put("dead", 7, started_at)
    lease = world.lease("a")
    assert lease.acquire(pytest.fail)
    assert SILENT_S < world.now < SILENT_S + 5
    assert world.holder == "a"
    lease.release()


@pytest.mark.parametrize("left", [b"not json", b"[]", b'{"another": "version"}'])
def test_a_lease_that_cannot_be_read_is_that_of_a_silent_holder(world, left):
    world.store.write(PATH, left)
    lease = world.lease("a")
    assert lease.acquire(pytest.fail)
    assert world.holder == "a"
    lease.release()


def test_of_two_that_take_over_at_once_one_has_it(world):
    world.put("dead")

    def other_is_quicker_by_a_moment():
        if world.holder == "a":
            world.put("b", 3)
            beats = iter(range(4, 1000))
            world.meanwhile = lambda: world.put("b", next(beats))

    world.meanwhile = other_is_quicker_by_a_moment
    assert not world.lease("a").acquire(lambda other: other.run_id != "b")
    assert world.holder == "b"


def test_the_holder_shows_that_it_lives_and_tells_when_it_was_taken_for_dead(world, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    lease = world.lease("a")
    assert lease.acquire(pytest.fail)
    deadline = time.monotonic() + 30
    while json.loads(world.store.read(PATH))["beat"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    while lease._beater.is_alive():  # it may have looked just before
        assert time.monotonic() < deadline
        world.put("b")
        lease._beater.join(0.1)
    assert "another run has taken this data set over" in caplog.text
    lease.release()
    assert world.holder == "b", "what is another's is not given back"


class Failing:
    """A store that answers with errors."""

    def __init__(self, error):
        self._error = error

    def __getattr__(self, name):
        def fails(*_):
            raise self._error

        return fails


@pytest.mark.parametrize("error", [StorageError("denied"), StoreFullError("full")])
def test_a_store_that_takes_no_lease_holds_no_run_up(error):
    lease = Lease(Failing(error), "photos", Holder("a", "h", "t"))
    assert lease.acquire(pytest.fail)
    lease.release()


def test_a_store_that_is_away_is_told():
    with pytest.raises(TransientError):
        Lease(Failing(TransientError("away")), "photos", Holder("a", "h", "t")).acquire(pytest.fail)


def test_a_store_that_is_away_for_a_while_ends_no_wait_and_kills_nobody(world, monkeypatch):
    world.put("other")
    create = world.store.create

    def sometimes(path, data):
        if 5 < world.now < 5 + 2 * SILENT_S:
            raise TransientError("away")
        if world.now > 100:
            world.store.delete(PATH)
        create(path, data)

    beats = iter(range(1, 1000))
    world.meanwhile = lambda: world.put("other", next(beats)) if world.now < 100 else None
    monkeypatch.setattr(world.store, "create", sometimes)
    lease = world.lease("a")
    assert lease.acquire(lambda other: True)
    assert world.now > 100
    lease.release()


def test_a_holder_that_cannot_be_read_but_lives_is_not_taken_for_dead(world):
    world.store.write(PATH, b'{"another": "version", "beat": 0}')
    beats = iter(range(1, 1000))
    world.meanwhile = lambda: world.store.write(PATH, f'{{"another": "version", "beat": {next(beats)}}}'.encode())
    asked = []
    assert not world.lease("a").acquire(lambda other: asked.append(other.run_id) or len(asked) < 60)
    assert asked[0] == "unknown"
    assert world.now > SILENT_S
