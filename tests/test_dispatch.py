import os
import signal
from collections import Counter

import pytest
from conftest import LocalPool

from cluster import dispatch as module
from cluster.dispatch import Failure, dispatch
from cluster.workers import ActorPool
from pipeline.errors import IntegrityError, NotFoundError, SourceChangedError, StorageError, TransientError, UsageError


class Flaky:
    """A function of an item: raises what is planned for its first attempts, then returns ten times the item."""

    def __init__(self, **plans):
        self.plans = {int(key.removeprefix("item")): list(errors) for key, errors in plans.items()}
        self.calls = Counter()

    def __call__(self, item):
        self.calls[item] += 1
        errors = self.plans.get(item)
        if errors:
            raise errors.pop(0)
        return item * 10


def pool_of(function, slots=3):
    return LocalPool(lambda: function, slots, slots)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)


def test_every_item_comes_back_once_and_no_more_run_than_there_are_slots(local_ray):
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    ended = []
    for item, result in dispatch(pool_of(Flaky(), slots=3), items(), attempts=1):
        ended.append((item, result))
        assert len(taken) <= len(ended) + 3, "items are drawn only when a slot is free"
    assert sorted(ended) == [(item, item * 10) for item in range(20)]
    assert local_ray.most == 3


def test_no_items_is_no_work(local_ray):
    assert list(dispatch(pool_of(Flaky()), [], attempts=3)) == []


@pytest.mark.parametrize(
    "error", [TransientError("503 slow down"), MemoryError(), ValueError("a defect"), OSError(5, "io")]
)
def test_what_may_pass_is_tried_again(local_ray, error):
    work = Flaky(item1=[error, error])
    assert dict(dispatch(pool_of(work), [0, 1, 2], attempts=3)) == {0: 0, 1: 10, 2: 20}
    assert work.calls == {0: 1, 1: 3, 2: 1}


@pytest.mark.parametrize("name", ["OutOfMemoryError", "WorkerCrashedError", "ActorDiedError"])
def test_a_worker_that_dies_costs_one_attempt(local_ray, name):
    kind = getattr(local_ray.exceptions, name)
    work = Flaky(item1=[kind("killed") if name == "OutOfMemoryError" else kind()])
    assert dict(dispatch(pool_of(work), [0, 1], attempts=2)) == {0: 0, 1: 10}
    assert work.calls[1] == 2


def test_a_worker_that_is_still_away_costs_no_attempt(local_ray):
    """Another item killed it: the one that finds it gone has not been tried at all."""
    away = [local_ray.exceptions.ActorUnavailableError("the actor is away", None) for _ in range(20)]
    work = Flaky(item1=[*away, ValueError("first attempt"), away[0]])
    assert dict(dispatch(pool_of(work), [0, 1], attempts=2)) == {0: 0, 1: 10}
    assert work.calls[1] == 23


def test_a_worker_that_never_comes_back_is_given_up(local_ray):
    away = [local_ray.exceptions.ActorUnavailableError("the actor is away", None) for _ in range(module.MISSES + 2)]
    ((_, failure),) = dispatch(pool_of(Flaky(item1=away)), [1], attempts=2)
    assert failure.attempts == 2
    assert "ActorUnavailableError" in failure.error


def test_an_item_that_always_fails_is_given_up_after_its_attempts_and_the_others_go_on(local_ray):
    work = Flaky(
        item1=[
            ValueError("first"),
            ValueError("second"),
            ValueError("the last\nwith a second line"),
            ValueError("never"),
        ]
    )
    ended = dict(dispatch(pool_of(work), range(6), attempts=3))
    assert ended.pop(1) == Failure("ValueError: the last", 3)
    assert ended == {item: item * 10 for item in (0, 2, 3, 4, 5)}


@pytest.mark.parametrize("kind", [StorageError, NotFoundError, SourceChangedError])
def test_an_answer_that_stays_no_is_not_asked_for_again(local_ray, kind):
    work = Flaky(item1=[kind("no")])
    assert dict(dispatch(pool_of(work), [1], attempts=5)) == {1: Failure(f"{kind.__name__}: no", 1)}


@pytest.mark.parametrize("kind", [UsageError, IntegrityError])
def test_what_is_wrong_with_the_whole_run_stops_it_and_cancels_the_rest(local_ray, kind):
    work = Flaky(item2=[kind("wrong")])
    with pytest.raises(kind, match=r"^wrong$") as raised:
        list(dispatch(pool_of(work), range(100), attempts=5))
    assert type(raised.value) is kind, "the error itself, not Ray's copy with a traceback in its message"
    assert work.calls == {2: 1}
    assert len(local_ray.cancelled) == 2


def test_an_abandoned_run_cancels_what_is_in_flight(local_ray):
    running = dispatch(pool_of(Flaky(), slots=4), range(100), attempts=1)
    next(running)
    running.close()
    assert len(local_ray.cancelled) == 3


def test_nothing_is_cancelled_after_the_session(local_ray, monkeypatch):
    monkeypatch.setattr(local_ray, "is_initialized", lambda: False)
    running = dispatch(pool_of(Flaky(), slots=4), range(100), attempts=1)
    next(running)
    running.close()
    assert local_ray.cancelled == [], "ray.cancel would start a session of its own"


def test_a_cancellation_that_fails_hides_no_error(local_ray, monkeypatch):
    def fails(future, force):
        raise local_ray.exceptions.RaySystemError("the raylet is gone")

    monkeypatch.setattr(local_ray, "cancel", fails)
    with pytest.raises(UsageError, match="wrong"):
        list(dispatch(pool_of(Flaky(item2=[UsageError("wrong")])), range(9), attempts=1))


def test_a_pool_that_stands_still_is_said_and_then_goes_on(local_ray, monkeypatch, caplog):
    monkeypatch.setattr(module, "STALL_S", 1e-9)
    monkeypatch.setattr(module, "available", lambda: 4.0)
    monkeypatch.setattr(module, "unused", lambda: 0.0)
    wait, silent = local_ray.wait, iter([True, True, False, False])
    monkeypatch.setattr(
        local_ray,
        "wait",
        lambda futures, num_returns, timeout: ([], futures) if next(silent) else wait(futures, 1, timeout),
    )
    assert len(list(dispatch(pool_of(Flaky(), slots=2), range(2), attempts=1))) == 2
    said = [record.getMessage() for record in caplog.records]
    assert said
    assert "2 pieces of work are in flight, and 0 of the session's 4 CPUs are free" in said[0]


@pytest.mark.parametrize(("attempt", "longest_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (50, 30.0)])
def test_pauses_double_up_to_half_a_minute_and_are_shortened_by_chance(monkeypatch, attempt, longest_s):
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.5)
    pauses = {module._pause_s(attempt) for _ in range(50)}
    assert longest_s / 2 <= min(pauses) < max(pauses) <= longest_s


def test_actors_that_die_are_replaced_and_every_item_still_comes_back(ray_session, tmp_path):
    deaths = {3: "exit", 8: "kill"}

    def open_worker():
        def work(item):
            mark = tmp_path / f"died-{item}"
            if item in deaths and not mark.exists():
                mark.touch()
                if deaths[item] == "exit":
                    os._exit(9)
                os.kill(os.getpid(), signal.SIGKILL)
            return item * 10

        return work

    with ActorPool(open_worker, 12, workers=2, cpus=1) as pool:
        ended = list(dispatch(pool, range(12), attempts=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["died-3", "died-8"]
    assert sorted(ended) == [(item, item * 10) for item in range(12)]
