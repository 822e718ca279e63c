import pytest

from cluster import resources
from cluster.resources import Size, available, check_alive, check_fits, fitting, places, unused
from pipeline.errors import TransientError, UsageError


@pytest.fixture
def cluster(monkeypatch):
    """Pretend a node of 8 CPUs and 2 GPUs, of which 3 CPUs are free, and one that died."""
    nodes = [
        {"NodeID": "a", "Alive": True, "Labels": {}, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"NodeID": "b", "Alive": False, "Labels": {}, "Resources": {"CPU": 64.0}},
    ]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0, "memory": 1e9})
    monkeypatch.setattr(resources, "draining", set)
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
    assert fitting(Size(cpus, gpus), wanted) == workers


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
        fitting(Size(cpus, gpus), wanted)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers"), [(1, 0, 6), (2, 0, 2), (3, 0, 2), (1, 1, 1), (0.5, 0.5, 2)]
)  # fmt: skip
def test_a_worker_never_spans_two_nodes(monkeypatch, cpus, gpus, workers):
    nodes = [
        {"NodeID": "c", "Alive": True, "Labels": {}, "Resources": {"CPU": 3.0}},
        {"NodeID": "d", "Alive": True, "Labels": {}, "Resources": {"CPU": 3.0, "GPU": 1.0}},
    ]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources, "draining", set)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 6.0, "GPU": 1.0})
    assert fitting(Size(cpus, gpus), None) == workers


def test_the_standing_session_has_what_it_was_given(ray_session):
    assert (available(), available("GPU")) == (4, 0)
    assert fitting(Size(2), None) == 2


@pytest.mark.parametrize(("cpus", "gpus", "workers"), [(1, 0, 8), (3, 0, 2), (16, 0, 0), (1, 1, 2), (1, 4, 0)])
def test_places_are_counted_on_nodes_that_live(cluster, cpus, gpus, workers):
    assert places(Size(cpus, gpus)) == workers
    assert check_fits(workers, Size(cpus, gpus)) == workers
    with pytest.raises(UsageError, match="do not fit"):
        check_fits(workers + 1, Size(cpus, gpus))


@pytest.mark.parametrize(("alive", "fine"), [([True, False], True), ([False, False], False), ([], False)])
def test_a_session_without_a_living_node_is_over(monkeypatch, alive, fine):
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": one} for one in alive])
    if fine:
        check_alive()
    else:
        with pytest.raises(TransientError, match=r"not even its head .* the same command continues it"):
            check_alive()


GROUPS = [
    {"NodeID": "e", "Alive": True, "Labels": {"group": "cpu", "zone": "a"}, "Resources": {"CPU": 8.0, "memory": 16e9}},
    {
        "NodeID": "f",
        "Alive": True,
        "Labels": {"group": "gpu", "zone": "a"},
        "Resources": {"CPU": 4.0, "memory": 8e9, "GPU": 1.0},
    },
]


@pytest.mark.parametrize(
    ("size", "workers"),
    [
        (Size(1), 12),
        (Size(1, memory_mb=3000), 7),
        (Size(1, memory_mb=20_000), 0),
        (Size(1, node_labels={"group": "gpu"}), 4),
        (Size(1, node_labels={"group": "gpu", "zone": "b"}), 0),
        (Size(1, node_labels={"zone": "a"}), 12),
        (Size(1, 1, node_labels={"group": "cpu"}), 0),
    ],
)
def test_memory_and_labels_of_nodes_decide_too(monkeypatch, size, workers):
    monkeypatch.setattr(resources.ray, "nodes", lambda: GROUPS)
    monkeypatch.setattr(resources, "draining", set)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 12.0, "GPU": 1.0, "memory": 24e9})
    assert places(size) == workers


def test_what_does_not_fit_is_told_with_its_memory_and_labels(monkeypatch):
    monkeypatch.setattr(resources.ray, "nodes", lambda: GROUPS)
    monkeypatch.setattr(resources, "draining", set)
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 12.0, "GPU": 1.0, "memory": 24e9})
    words = r"1 worker\(s\) of 1 CPU and 0 GPU and 500 MB on nodes labelled group=tpu do not fit into 12 CPU and 1 GPU and 24,000 MB"
    with pytest.raises(UsageError, match=words):
        check_fits(1, Size(1, 0, 500, {"group": "tpu"}))


def test_ray_places_workers_by_labels_and_memory(ray_session):
    import ray

    node = ray.nodes()[0]
    key = next(key for key, value in node["Labels"].items() if value)
    where = Size(1, 0, 50, {key: node["Labels"][key]})
    assert places(where) == places(Size(1, 0, 50)) > 0

    @ray.remote(**where.options)
    class Asked:
        def node(self):
            return ray.get_runtime_context().get_node_id()

    asked = Asked.remote()
    assert ray.get(asked.node.remote(), timeout=60) == node["NodeID"]
    ray.kill(asked)
    elsewhere = Size(1, node_labels={key: "elsewhere"})
    assert places(elsewhere) == 0


def test_nodes_that_are_to_be_taken_away_hold_no_new_workers(cluster, monkeypatch):
    assert places(Size(1)) == 8
    monkeypatch.setattr(resources, "draining", lambda: {"a"})
    assert places(Size(1)) == 0
