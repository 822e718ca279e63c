import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.checkout import code_root, program
from cluster.dispatch import Failure, dispatch
from cluster.resources import Size
from cluster.workers import ActorPool, TaskPool, Whereabouts
from pipeline.errors import ModelError, TransientError, UsageError


class Handle:
    """An actor handle that starts nothing."""

    def __init__(self, *arguments):
        self.where = type("M", (), {"remote": lambda _: f"starting {id(self)}"})()


@pytest.fixture
def no_actors(monkeypatch):
    """Eight CPUs and no processes; collects what would be killed."""
    killed = []
    monkeypatch.setattr(
        "cluster.resources.ray.nodes", lambda: [{"NodeID": "a", "Alive": True, "Labels": {}, "Resources": {"CPU": 8.0}}]
    )
    monkeypatch.setattr("cluster.resources.ray.cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr("cluster.workers.ray.remote", lambda **options: lambda kind: type("R", (), {"remote": Handle}))
    monkeypatch.setattr("cluster.workers.ray.get", lambda future: Whereabouts(f"worker of {future}", "a", program()))
    for user in ("cluster.resources", "cluster.workers"):
        monkeypatch.setattr(f"{user}.draining", set)
    monkeypatch.setattr("cluster.workers.ray.kill", killed.append)
    monkeypatch.setattr("cluster.workers.ray.is_initialized", lambda: True)
    monkeypatch.setattr("cluster.workers.LOOK_EVERY_S", 0.0)
    return killed


def nodes(monkeypatch, *cpus):
    monkeypatch.setattr(
        "cluster.resources.ray.nodes",
        lambda: [
            {"NodeID": chr(97 + i), "Alive": True, "Labels": {}, "Resources": {"CPU": float(n)}}
            for i, n in enumerate(cpus)
        ],
    )


def admit_all(pool):
    for future in list(pool.starting):
        pool.admit(future)


@pytest.mark.parametrize(
    ("items", "most", "actors"), [(100, None, 8), (100, 3, 3), (2, None, 2), (1, 4, 1), (100, 99, 8), (0, None, 0)]
)
def test_as_many_actors_as_there_is_work_for_are_allowed_and_fit(no_actors, items, most, actors):
    pool = ActorPool(len, 1, most, Size(1), places=2)
    pool.staff(items)
    pool.staff(items)
    assert len(pool.starting) == actors
    assert pool.room == 2 * min(most or 8, 8)
    admit_all(pool)
    assert (len(pool.starting), len(pool.workers)) == (0, actors)


def test_an_actor_with_other_code_ends_the_run_with_both_paths(no_actors, monkeypatch):
    other = replace(program(), root="/elsewhere/nightshift")
    monkeypatch.setattr("cluster.workers.ray.get", lambda future: Whereabouts("worker", "a", other))
    pool = ActorPool(len, 1, 1, Size(1))
    pool.staff(1)
    with pytest.raises(UsageError, match=rf"from /elsewhere/nightshift, this process from {code_root()}"):
        admit_all(pool)


def test_an_actor_with_another_torch_ends_the_run_in_words(no_actors, monkeypatch):
    other = replace(program(), versions=(("torch", "1.13.0"), ("torchvision", "0.14.0")))
    monkeypatch.setattr("cluster.workers.ray.get", lambda future: Whereabouts("worker 7 at 10.0.0.8", "a", other))
    pool = ActorPool(len, 1, 1, Size(1))
    pool.staff(1)
    with pytest.raises(UsageError, match=r"worker 7 at 10.0.0.8: torch is 1.13.0 there and .* run the same image"):
        admit_all(pool)


def test_actors_on_a_node_that_is_to_be_taken_away_get_no_work_and_end(no_actors, monkeypatch, caplog):
    """The other node's go on; what the leaving ones hold may end until shortly before the node goes."""
    nodes(monkeypatch, 2, 2)
    places = iter("aabb")
    monkeypatch.setattr(
        "cluster.workers.ray.get", lambda future: Whereabouts(f"worker {future}", next(places), program())
    )
    pool = ActorPool(len, 1, None, Size(1))
    pool.staff(4)
    admit_all(pool)
    leaving, staying = pool.workers[:2], pool.workers[2:]
    for user in ("cluster.resources", "cluster.workers"):
        monkeypatch.setattr(f"{user}.draining", lambda: {"a"})
    pool.staff(4)
    assert (pool.workers, pool.starting) == (staying, {}), "its places are no places any more"
    assert no_actors == []
    assert caplog.text.count("its node is to be taken away") == 2
    monkeypatch.setattr("cluster.workers.NOTICE_S", 0.0)
    pool.retire(leaving[0])
    pool._leaving = [(seat, 0.0) for seat, _ in pool._leaving]
    pool.staff(4)
    assert no_actors == [leaving[0].actor, leaving[1].actor], "one died before, the other's time is up"
    with pool:
        pass
    assert no_actors[2:] == [seat.actor for seat in staying]


def test_fewer_than_the_least_number_of_actors_are_refused(no_actors):
    with pytest.raises(UsageError, match="9 worker"):
        ActorPool(len, 9, None, Size(1))


def test_a_node_that_joins_gets_actors_and_one_that_left_gets_no_other(no_actors, monkeypatch):
    pool = ActorPool(len, 1, 6, Size(2))
    pool.staff(50)
    assert len(pool.starting) == 4
    admit_all(pool)
    nodes(monkeypatch, 8, 2, 64)
    pool.staff(50)
    assert len(pool.starting) == 2, "up to max_workers"
    admit_all(pool)
    nodes(monkeypatch, 8)
    for seat in pool.workers[4:]:
        pool.retire(seat)
        pool.retire(seat)
    pool.staff(50)
    assert (len(pool.workers), len(pool.starting), len(no_actors)) == (4, 0, 2)


def test_when_the_head_alone_is_left_one_actor_waits_for_the_next_node(no_actors, monkeypatch):
    pool = ActorPool(len, 1, None, Size(1))
    nodes(monkeypatch, 0)
    pool.staff(50)
    pool.staff(50)
    assert (len(pool.starting), pool.room) == (1, 1)
    nodes(monkeypatch, 3)
    pool.staff(50)
    assert (len(pool.starting), pool.room) == (3, 3)


def test_without_any_node_nobody_waits(no_actors, monkeypatch):
    pool = ActorPool(len, 1, None, Size(1))
    nodes(monkeypatch)
    with pytest.raises(TransientError, match="not even its head"):
        pool.staff(50)


def test_an_actor_that_fails_to_start_is_said_and_tried_again_after_a_while(no_actors, monkeypatch):
    pool = ActorPool(len, 1, 1, Size(1))
    monkeypatch.setattr("cluster.workers.LOOK_EVERY_S", 3600.0)
    monkeypatch.setattr("cluster.workers.ray.get", lambda future: fails())

    def fails():
        raise ray.exceptions.ActorDiedError()

    pool.staff(5)
    admit_all(pool)
    pool.staff(5)
    assert (len(pool.workers), len(pool.starting)) == (0, 0)
    assert pool.trouble.startswith("ActorDiedError: ")
    monkeypatch.setattr("cluster.workers.time.monotonic", lambda: 1e12)
    pool.staff(5)
    assert len(pool.starting) == 1


def test_leaving_the_block_ends_every_actor(no_actors):
    with ActorPool(len, 1, None, Size(1)) as pool:
        pool.staff(3)
        admit_all(pool)
        pool.staff(5)
    assert len(no_actors) == 5


def test_leaving_the_block_after_the_session_starts_no_other(no_actors, monkeypatch):
    with ActorPool(len, 1, None, Size(1)) as pool:
        pool.staff(5)
        monkeypatch.setattr("cluster.workers.ray.is_initialized", lambda: False)
    assert no_actors == []


def test_an_actor_makes_its_function_once_with_its_share_of_threads(ray_session):
    def open_worker():
        import torch

        made = {"made": 0, "threads": torch.get_num_threads()}

        def work(item, halvings):
            made["made"] += 1
            return os.getpid(), made["made"], made["threads"]

        return work

    with ActorPool(open_worker, 1, 1, Size(2)) as pool:
        results = [result for _, result in dispatch(pool, range(3), attempts=1)]
        pid = results[0][0]
    assert pid != os.getpid()
    assert sorted(results) == [(pid, 1, 2), (pid, 2, 2), (pid, 3, 2)]
    deadline = time.monotonic() + 30
    while _alive(pid):
        assert time.monotonic() < deadline, "leaving the pool ends its processes"
        time.sleep(0.05)


def _alive(pid):
    try:
        return "ray::" in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_model_that_cannot_be_built_stops_the_run_with_its_own_error(ray_session):
    def open_worker():
        raise ModelError("the weights do not fit")

    with (
        pytest.raises(ModelError, match=r"^the weights do not fit$"),
        ActorPool(open_worker, 1, 1, Size(1)) as pool,
    ):
        list(dispatch(pool, range(3), attempts=5))


def test_tasks_take_two_items_per_cpu_and_fail_one_by_one(ray_session):
    def work(item):
        if item == 2:
            raise ValueError("bad item")
        return item * 10

    pool = TaskPool(work)
    assert pool.room == 2 * ray.cluster_resources()["CPU"]
    ended = dict(dispatch(pool, range(12), attempts=1))
    assert ended.pop(2) == Failure("ValueError: bad item", 1, "error")
    assert ended == {item: item * 10 for item in range(12) if item != 2}


def test_two_items_of_one_actor_run_at_the_same_time_and_share_one_function(ray_session, tmp_path):
    """Each waits for the other; the function is made once although both ask for it first."""

    def open_worker():
        made = tmp_path / "made"
        made.write_text(made.read_text() + "x" if made.exists() else "x")

        def work(item, halvings):
            (tmp_path / f"here-{item}").touch()
            deadline = time.monotonic() + 30
            while not (tmp_path / f"here-{1 - item}").exists():
                assert time.monotonic() < deadline, "the other one never came"
                time.sleep(0.01)
            return os.getpid()

        return work

    with ActorPool(open_worker, 1, 1, Size(1), places=2) as pool:
        results = dict(dispatch(pool, [0, 1], attempts=1))
    assert results[0] == results[1]
    assert (tmp_path / "made").read_text() == "x"


def test_a_real_memory_error_comes_back_with_a_smaller_batch(ray_session):
    def open_worker():
        def work(item, halvings):
            if halvings < item:
                raise MemoryError("too large")
            return halvings

        return work

    with ActorPool(open_worker, 1, 1, Size(1), places=2) as pool:
        assert dict(dispatch(pool, range(4), attempts=1, halvings=6)) == {0: 0, 1: 1, 2: 2, 3: 3}
