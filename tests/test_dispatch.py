import os
import re
import signal
import time
from collections import Counter

import pytest
from conftest import LocalPool

from cluster import dispatch as module
from cluster.dispatch import Failure, dispatch
from cluster.resources import Size
from cluster.workers import ActorPool
from pipeline.errors import IntegrityError, NotFoundError, SourceChangedError, StorageError, TransientError, UsageError


class Flaky:
    """A function of an item: raises what is planned for its first tries, then returns ten times the item."""

    def __init__(self, **plans):
        self.plans = {int(key.removeprefix("item")): list(errors) for key, errors in plans.items()}
        self.calls, self.halvings = Counter(), {}

    def __call__(self, item, halvings):
        self.calls[item] += 1
        self.halvings[item] = halvings
        errors = self.plans.get(item)
        if errors:
            raise errors.pop(0)
        return item * 10


def pool_of(function, slots=3, places=1):
    return LocalPool(lambda: function, 1, slots, None, places)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("cluster.retries.FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("cluster.retries.LONGEST_PAUSE_S", 0.01)


def test_every_item_comes_back_once_and_no_more_run_than_there_are_places(local_ray):
    taken = []

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    ended = []
    for item, result in dispatch(pool_of(Flaky(), slots=2, places=2), items(), attempts=1):
        ended.append((item, result))
        assert len(taken) <= len(ended) + 4, "items are drawn only when there is room"
    assert sorted(ended) == [(item, item * 10) for item in range(20)]
    assert local_ray.most == 4


def test_an_item_starts_before_the_next_is_drawn(local_ray):
    """Planning streams: the first shard is labelled while the listing goes on."""
    pool, submitted = pool_of(Flaky(), slots=4), []
    submit = pool.submit
    pool.submit = lambda worker, item, halvings: (submitted.append(item), submit(worker, item, halvings))[1]

    def items():
        for item in range(6):
            assert submitted == list(range(item))
            yield item

    assert len(dict(dispatch(pool, items(), attempts=1))) == 6


def test_items_that_are_not_there_yet_are_asked_for_again(local_ray, monkeypatch, caplog):
    """Planning may be slower than labelling: the workers wait for it, idle or not, and a stall says so."""
    monkeypatch.setattr(module, "UNREADY_S", 0.001)
    monkeypatch.setattr(module, "available", lambda: 4.0)
    monkeypatch.setattr(module, "unused", lambda: 4.0)
    items = iter([None, 1, None, None, 2, 3, None, 4, None])
    ended = list(dispatch(pool_of(Flaky(item2=[TransientError("503")])), items, attempts=1, stall_s=1e-9))
    assert sorted(ended) == [(item, item * 10) for item in (1, 2, 3, 4)]
    assert "there is room for more, which is not there yet" in caplog.text


def test_a_stop_ends_the_wait_for_items(local_ray):
    asked = []

    def never():
        while True:
            asked.append(None)
            yield None

    assert list(dispatch(pool_of(Flaky()), never(), attempts=1, stop=lambda: len(asked) == 2)) == []


def test_a_result_may_be_nothing(local_ray):
    assert list(dispatch(pool_of(lambda item, halvings: None), [1], attempts=1)) == [(1, None)]


def test_no_items_is_no_work(local_ray):
    assert list(dispatch(pool_of(Flaky()), [], attempts=3)) == []


@pytest.mark.parametrize("error", [ValueError("a defect"), OSError(5, "io")])
def test_what_may_pass_is_tried_again(local_ray, error):
    work, retries = Flaky(item1=[error, error]), Counter()
    assert dict(dispatch(pool_of(work), [0, 1, 2], attempts=3, retries=retries)) == {0: 0, 1: 10, 2: 20}
    assert work.calls == {0: 1, 1: 3, 2: 1}
    assert retries == {"error": 2}


def test_throttling_uses_up_no_attempts(local_ray):
    work, retries = Flaky(item1=[TransientError("503 slow down")] * 9), Counter()
    assert dict(dispatch(pool_of(work), [0, 1], attempts=1, retries=retries)) == {0: 0, 1: 10}
    assert retries == {"storage": 9}


def test_while_the_storage_is_away_no_more_than_a_roomful_waits(local_ray, monkeypatch):
    monkeypatch.setattr("cluster.retries.STORAGE_PATIENCE_S", 0.2)
    taken = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    running = dispatch(pool_of(Flaky(**{f"item{n}": [TransientError("503")] * 999 for n in range(50)})), items(), 1)
    first, failure = next(running)
    assert (failure.kind, failure.attempts > 3) == ("storage", True)
    assert len(taken) <= 2 * 3 + 1
    assert len({first, *dict(running)}) == 50, "then each is tried once more, and given up"


def test_memory_halves_the_batch_of_that_item_until_it_fits(local_ray):
    work, retries = Flaky(item1=[MemoryError(), MemoryError(), local_ray.exceptions.OutOfMemoryError("x")]), Counter()
    pool = pool_of(work)
    assert dict(dispatch(pool, [0, 1, 2], attempts=1, halvings=6, retries=retries)) == {0: 0, 1: 10, 2: 20}
    assert work.halvings == {0: 0, 1: 3, 2: 0}
    assert retries == {"memory": 3}
    assert len(pool.retired) == 1, "Ray's memory monitor killed its worker; a MemoryError leaves it alive"


@pytest.mark.parametrize("name", ["WorkerCrashedError", "ActorDiedError"])
def test_a_worker_that_dies_is_retired_and_costs_one_attempt(local_ray, name):
    work, pool = Flaky(item1=[getattr(local_ray.exceptions, name)()]), pool_of
    pool = pool_of(work)
    assert dict(dispatch(pool, [0, 1], attempts=2)) == {0: 0, 1: 10}
    assert work.calls[1] == 2
    assert len(pool.retired) == 1


class Shared(LocalPool):
    """Workers with two places that die of some items, and with them what else they hold; `alone` is what ran alone."""

    def __init__(self, deadly, workers=2):
        super().__init__(lambda: Flaky(), 1, workers, None, 2)
        self.deadly, self.held, self.alone = deadly, {}, []

    def submit(self, worker, item, halvings):
        flight = [worker, item]
        held = self.held.setdefault(worker, [])
        held.append(flight)

        def run():
            from ray.exceptions import ActorDiedError

            if any(other in self.deadly for _, other in held):
                if held == [flight]:
                    self.alone.append(item)
                self.dead = list(held)
                held.remove(flight)
                raise ActorDiedError()
            if held == [flight]:
                self.alone.append(item)
            held.remove(flight)
            return item * 10

        return run


def test_what_died_in_company_is_tried_alone_and_only_the_culprit_is_charged(local_ray):
    pool, retries = Shared(deadly={3}), Counter()
    ended = dict(dispatch(pool, range(12), attempts=1, retries=retries))
    culprit = ended.pop(3)
    assert (culprit.kind, culprit.attempts) == ("worker", 2)
    assert ended == {item: item * 10 for item in range(12) if item != 3}
    assert 3 in pool.alone
    assert all(Counter(pool.alone)[item] <= 1 for item in range(12))


def test_an_item_that_must_be_alone_gets_a_worker_to_itself(local_ray):
    """Others go on elsewhere, and the worker is not refilled before it is idle."""
    held, seen = Counter(), []

    class Watched(LocalPool):
        def submit(self, worker, item, halvings):
            held[worker] += 1
            seen.append((item, halvings, held[worker]))
            run = super().submit(worker, item, halvings)

            def ends():
                if item == 4 and halvings:
                    assert held[worker] == 1
                held[worker] -= 1
                return run()

            return ends

    work = Flaky(item4=[MemoryError()])
    pool = Watched(lambda: work, 1, 2, None, 2)
    assert len(dict(dispatch(pool, range(30), attempts=1, halvings=3))) == 30
    assert [(item, beside) for item, halvings, beside in seen if halvings] == [(4, 1)]


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
    assert ended.pop(1) == Failure("ValueError: the last", 3, "error")
    assert ended == {item: item * 10 for item in (0, 2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("error", "kind"), [(StorageError, "refused"), (NotFoundError, "changed"), (SourceChangedError, "changed")]
)
def test_an_answer_that_stays_no_is_not_asked_for_again(local_ray, error, kind):
    work = Flaky(item1=[error("no")])
    assert dict(dispatch(pool_of(work), [1], attempts=5)) == {1: Failure(f"{error.__name__}: no", 1, kind)}


def test_a_stop_lets_what_is_in_flight_end_and_starts_nothing(local_ray):
    work, stopped = Flaky(item0=[ValueError("again, but not any more")]), []
    running = dispatch(pool_of(work, slots=3), range(20), attempts=5, stop=lambda: bool(stopped))
    ended = [next(running)]
    stopped.append(True)
    ended += running
    assert len(ended) == 2, "one ended, and with it three were drawn, of which one failed and would be tried again"
    assert sum(work.calls.values()) == 3
    assert local_ray.cancelled == []


def test_a_stop_before_the_start_starts_nothing(local_ray):
    assert list(dispatch(pool_of(Flaky()), iter([1, 2]), attempts=1, stop=lambda: True)) == []


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


class Growing(LocalPool):
    """No worker at first; the first of those that were asked for fails to start, the others come when they are waited for."""

    def __init__(self):
        super().__init__(lambda: Flaky(), 1, 2)
        self.workers, self.starting, self.asked, self.trouble = [], {}, 0, ""

    @property
    def room(self):
        return 2

    def staff(self, items):
        while len(self.workers) + len(self.starting) < min(items, 2):
            self.asked += 1
            self.starting[f"start {self.asked}"] = self.asked

    def admit(self, future):
        number = self.starting.pop(future)
        if number == 1:
            self.trouble = "the first failed"
        else:
            self.workers.append(number)

    def retire(self, worker):
        if worker in self.workers:
            self.workers.remove(worker)


def test_workers_come_when_there_is_work_and_those_that_die_are_replaced(local_ray):
    work, pool = Flaky(item2=[local_ray.exceptions.ActorDiedError()] * 2), Growing()
    pool._factory = lambda: work
    assert dict(dispatch(pool, range(5), attempts=3)) == {item: item * 10 for item in range(5)}
    assert pool.asked >= 4, "two, another for the one that failed to start, and one for the dead"


def test_one_item_asks_for_one_worker(local_ray):
    pool = Growing()
    assert dict(dispatch(pool, [7], attempts=3)) == {7: 70}
    assert pool.asked == 2, "the first fails to start"


class Answering(LocalPool):
    def ask(self):
        return {lambda: "shard 3f2a for 9 s in read pipeline/rows.py:1": 0}


def test_a_stall_names_what_is_in_flight_and_what_the_workers_are_doing(local_ray, monkeypatch, caplog):
    monkeypatch.setattr(module, "available", lambda: 4.0)
    monkeypatch.setattr(module, "unused", lambda: 0.0)
    wait, silent = local_ray.wait, iter([True, True, False, False])

    def waits(futures, num_returns, timeout):
        if timeout == module.ANSWER_S:
            return futures, []
        return ([], futures) if next(silent) else wait(futures, 1, timeout)

    monkeypatch.setattr(local_ray, "wait", waits)
    pool = Answering(lambda: Flaky(), 1, 2)
    pool.trouble = "ActorDiedError: no disk"
    assert len(list(dispatch(pool, range(2), attempts=1, stall_s=1e-9))) == 2
    said = caplog.records[0].getMessage().splitlines()
    assert said[0].startswith("nothing was finished for ")
    assert "0 (0 s) on 0: shard 3f2a for 9 s in read pipeline/rows.py:1" in said[1]
    assert "1 (0 s) on 1: it does not answer" in said[2]
    assert "2 workers run and 0 wait for a place; 0 of the session's 4 CPUs are free" in said[3]
    assert "ActorDiedError: no disk" in said[4]


def test_retries_are_no_progress(local_ray, monkeypatch, caplog):
    monkeypatch.setattr(module, "available", lambda: 4.0)
    monkeypatch.setattr(module, "unused", lambda: 4.0)
    work = Flaky(item1=[TransientError("503")] * 30)
    assert dict(dispatch(pool_of(work), [1], attempts=1, stall_s=0.02)) == {1: 10}
    assert "1 wait for a worker, or for another try" in caplog.text


def killing(deaths, tmp_path):
    """Return a factory of functions that kill their process, each at its first try of an item in `deaths`."""

    def open_worker():
        def work(item, halvings):
            mark = tmp_path / f"died-{item}"
            if item in deaths and not mark.exists():
                mark.touch()
                if deaths[item] == "exit":
                    os._exit(9)
                os.kill(os.getpid(), signal.SIGKILL)
            return item * 10

        return work

    return open_worker


@pytest.mark.parametrize("places", [1, 2])
def test_actors_that_die_are_replaced_and_every_item_still_comes_back(ray_session, tmp_path, places):
    retries = Counter()
    with ActorPool(killing({3: "exit", 8: "kill"}, tmp_path), 1, 2, Size(1), places=places) as pool:
        ended = list(dispatch(pool, range(12), attempts=3, retries=retries))
        assert len(pool.workers) <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["died-3", "died-8"]
    assert sorted(ended) == [(item, item * 10) for item in range(12)]
    assert 2 <= retries["worker"] <= 2 * places
    assert set(retries) == {"worker"}


def test_a_real_stall_tells_the_line_where_each_item_hangs(ray_session, tmp_path, caplog, monkeypatch):
    """The item ends when the warning has been said."""

    def open_worker():
        def work(item, halvings):
            while not (tmp_path / "go on").exists():
                time.sleep(0.01)
            return item

        return work

    said = []

    def hears(record):
        said.append(record.getMessage())
        if {"5", "6"} <= set(re.findall(r"(\d) for \d s in run cluster/workers.py:", said[-1])):
            (tmp_path / "go on").touch()

    monkeypatch.setattr(caplog.handler, "emit", hears)
    with ActorPool(open_worker, 1, 1, Size(1), places=2) as pool:
        assert sorted(dispatch(pool, [5, 6], attempts=1, stall_s=0.5)) == [(5, 5), (6, 6)]
    assert re.search(r"5 \(\d s\), 6 \(\d s\) on worker \d+ at [\d.]+: [56] for", said[-1]), said
