import pytest

from cluster import resources
from cluster.resources import available, check_alive, check_fits, fitting, places, unused
from pipeline.errors import TransientError, UsageError


@pytest.fixture
def cluster(monkeypatch):
    """Pretend a node of 8 CPUs and 2 GPUs, of which 3 CPUs are free, and one that died."""
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0, "memory": 1e9})
    monkeypatch.setattr(resources.ray, "available_resources", lambda: {"CPU": 3.0})


def test_what_is_there_and_what_is_free_are_told_apart(cluster):
    assert (available(), available("GPU"), available("TPU")) == (8, 2, 0)
    assert (unused(), unused("GPU")) == (3, 0)


@pytest.mark.parametrize(
    ("cpus", "gpus", "wanted", "workers"),
    [
        (1, 0, None, 8),
        (1, 0, 3, 3),
        (1, 0, 8, 8),
        (3, 0, None, 2),
        (0.5, 0, None, 16),
        (1, 1, None, 2),
        (1, 0.5, None, 4),
        (4, 0.5, None, 2),
    ],
)
def test_as_many_workers_as_are_wanted_or_fit(cluster, cpus, gpus, wanted, workers):
    assert fitting(cpus, gpus, wanted) == workers


@pytest.mark.parametrize(
    ("cpus", "gpus", "wanted", "words"),
    [
        (1, 0, 9, r"9 worker\(s\) of 1 CPU and 0 GPU do not fit into 8 CPU and 2 GPU"),
        (16, 0, None, r"1 worker\(s\) of 16 CPU"),
        (1, 1, 3, r"3 worker\(s\) of 1 CPU and 1 GPU"),
        (1, 4, None, r"1 worker\(s\) of 1 CPU and 4 GPU"),
    ],
)
def test_workers_that_would_wait_for_ever_are_refused(cluster, cpus, gpus, wanted, words):
    with pytest.raises(UsageError, match=words):
        fitting(cpus, gpus, wanted)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers"), [(1, 0, 6), (2, 0, 2), (3, 0, 2), (1, 1, 1), (0.5, 0.5, 2)]
)  # fmt: skip
def test_a_worker_never_spans_two_nodes(monkeypatch, cpus, gpus, workers):
    nodes = [{"Alive": True, "Resources": {"CPU": 3.0}}, {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}}]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 1.0})
    assert fitting(cpus, gpus, None) == workers


def test_the_standing_session_has_what_it_was_given(ray_session):
    assert (available(), available("GPU")) == (4, 0)
    assert fitting(2, 0, None) == 2


@pytest.mark.parametrize(("cpus", "gpus", "workers"), [(1, 0, 8), (3, 0, 2), (16, 0, 0), (1, 1, 2), (1, 4, 0)])
def test_places_are_counted_on_nodes_that_live(cluster, cpus, gpus, workers):
    assert places(cpus, gpus) == workers
    assert check_fits(workers, cpus, gpus) == workers
    with pytest.raises(UsageError, match="do not fit"):
        check_fits(workers + 1, cpus, gpus)


@pytest.mark.parametrize(("alive", "fine"), [([True, False], True), ([False, False], False), ([], False)])
def test_a_session_without_a_living_node_is_over(monkeypatch, alive, fine):
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": one} for one in alive])
    if fine:
        check_alive()
    else:
        with pytest.raises(TransientError, match=r"not even its head .* the same command continues it"):
            check_alive()
