import os
import time
from pathlib import Path

import pytest
import ray

from cluster.dispatch import Failure, dispatch
from cluster.workers import ActorPool, TaskPool
from pipeline.errors import ModelError, UsageError


class Handle:
    """An actor handle that starts nothing."""


@pytest.fixture
def no_actors(monkeypatch):
    """Eight CPUs and no processes; collects what would be killed."""
    killed = []
    monkeypatch.setattr("cluster.resources.ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    monkeypatch.setattr("cluster.resources.ray.cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr("cluster.workers.ray.remote", lambda **options: lambda kind: type("R", (), {"remote": Handle}))
    monkeypatch.setattr(Handle, "__init__", lambda self, *arguments: None)
    monkeypatch.setattr("cluster.workers.ray.kill", killed.append)
    monkeypatch.setattr("cluster.workers.ray.is_initialized", lambda: True)
    return killed


@pytest.mark.parametrize(("num_items", "workers", "slots"), [(100, None, 8), (100, 3, 3), (2, None, 2), (1, 4, 1)])
def test_no_more_actors_than_items(no_actors, num_items, workers, slots):
    assert ActorPool(lambda: None, num_items, workers, cpus=1).slots == slots


def test_more_workers_than_fit_are_refused_even_for_one_item(no_actors):
    with pytest.raises(UsageError, match="9 worker"):
        ActorPool(lambda: None, 1, workers=9, cpus=1)


def test_leaving_the_block_ends_every_actor(no_actors):
    with ActorPool(lambda: None, 5, None, cpus=1):
        pass
    assert len(no_actors) == 5


def test_leaving_the_block_after_the_session_starts_no_other(no_actors, monkeypatch):
    with ActorPool(lambda: None, 5, None, cpus=1):
        monkeypatch.setattr("cluster.workers.ray.is_initialized", lambda: False)
    assert no_actors == []


def test_an_actor_makes_its_function_once_with_its_share_of_threads(ray_session):
    def open_worker():
        import torch

        made = {"made": 0, "threads": torch.get_num_threads()}

        def work(item):
            made["made"] += 1
            return os.getpid(), made["made"], made["threads"]

        return work

    with ActorPool(open_worker, 3, workers=1, cpus=2) as pool:
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
        ActorPool(open_worker, 3, workers=1, cpus=1) as pool,
    ):
        list(dispatch(pool, range(3), attempts=5))


def test_tasks_take_two_items_per_cpu_and_fail_one_by_one(ray_session):
    def work(item):
        if item == 2:
            raise ValueError("bad item")
        return item * 10

    pool = TaskPool(work)
    assert pool.slots == 2 * ray.cluster_resources()["CPU"]
    ended = dict(dispatch(pool, range(12), attempts=1))
    assert ended.pop(2) == Failure("ValueError: bad item", 1)
    assert ended == {item: item * 10 for item in range(12) if item != 2}
