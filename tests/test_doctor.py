import json

import pytest
import yaml

from jobs import doctor
from pipeline.errors import StorageError, UsageError
from pipeline.settings import ClusterSettings


@pytest.fixture
def config_file(night, tmp_path):
    """Return a function that writes the config of this store as a file."""
    night.write("a.parquet", [1, 2])

    def write(**sections) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(night.config(**sections).model_dump(mode="json")))
        return str(path)

    return write


@pytest.fixture
def no_cluster(monkeypatch):
    """Leave Ray out: what the other checks find needs none."""
    monkeypatch.setattr(doctor, "_cluster", lambda settings: "left out")


@pytest.mark.usefixtures("no_cluster")
def test_all_well(night, config_file, capsys):
    assert doctor.examine(config_file(), (), as_json=False) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"ok   {name}" for name in ("machine", "libraries", "known answer", "cluster", "store", "input")
    ]
    assert "a convolution gives 434 243 234" in lines[2]
    assert f"{night.store.url} can be written and read, and creates a name only once" in lines[4]
    assert "1 files (parquet), 0 others" in lines[5]
    assert list(night.store.list()) == []  # it cleans up


@pytest.mark.usefixtures("no_cluster")
def test_without_a_config_neither_store_nor_input_is_looked_at(capsys):
    assert doctor.examine(None, (), as_json=True) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"machine", "libraries", "known answer", "cluster"}


@pytest.mark.usefixtures("no_cluster")
def test_each_failing_check_is_said_and_the_others_go_on(night, config_file, tmp_path, capsys):
    (tmp_path / "in-the-way").write_text("")
    path = config_file(store=str(tmp_path / "in-the-way"), input={"url": str(tmp_path / "nowhere")})
    assert doctor.examine(path, (), as_json=True) == 1
    results = json.loads(capsys.readouterr().out)
    assert {name for name, result in results.items() if not result["ok"]} == {"store", "input"}
    assert str(tmp_path / "in-the-way") in results["store"]["found"]
    assert "nowhere does not exist" in results["input"]["found"]
    doctor.examine(path, (), as_json=False)
    said = capsys.readouterr().out
    assert "FAIL store: " in said
    assert "FAIL input: " in said


def test_cluster_that_does_not_answer_is_a_failed_check(monkeypatch, capsys):
    def absent(settings):
        raise UsageError("cluster.address: no Ray cluster answers")

    monkeypatch.setattr(doctor, "_cluster", absent)
    assert doctor.examine(None, (), as_json=False) == 1
    assert "FAIL cluster: cluster.address: no Ray cluster answers" in capsys.readouterr().out


@pytest.mark.usefixtures("no_cluster")
def test_library_that_is_not_installed_is_shown_as_absent(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "LIBRARIES", ("pyarrow", "no-such-library"))
    assert doctor.examine(None, (), as_json=True) == 0
    found = json.loads(capsys.readouterr().out)["libraries"]["found"]
    assert found.startswith("pyarrow ")
    assert found.endswith(", no-such-library -")


class Wrong:
    """A store with one fault, in front of a real one."""

    def __init__(self, store, **faults) -> None:
        self._store, self.url = store, store.url
        vars(self).update(faults)

    def __getattr__(self, name):
        return getattr(self._store, name)

    def open_store(self):
        return self


def test_store_that_overwrites_create_only_objects_fails(night):
    with pytest.raises(StorageError, match="overwrote a create-only object; publishing is not safe there"):
        doctor._store(Wrong(night.store, create=night.store.write))
    assert list(night.store.list()) == []


def test_store_that_returns_something_else_fails(night):
    with pytest.raises(StorageError, match="does not return what was written"):
        doctor._store(Wrong(night.store, read=lambda path: b"cached"))
    assert list(night.store.list()) == []


def test_torch_that_computes_wrongly_fails(monkeypatch, capsys, no_cluster):
    import torch

    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda image, kernel: torch.zeros(1, 1, 3, 3))
    assert doctor.examine(None, (), as_json=True) == 1
    assert "reinstall torch" in json.loads(capsys.readouterr().out)["known answer"]["found"]


@pytest.mark.usefixtures("ray_session")
def test_cluster_says_what_the_session_has():
    found = doctor._cluster(ClusterSettings())
    assert "4 CPUs" in found
    assert "workers import the same nightshift" in found
