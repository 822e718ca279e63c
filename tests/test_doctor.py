import json

import pytest
import yaml

from jobs import doctor


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
    monkeypatch.setattr(doctor, "_check_cluster", lambda report, *_: report.add("cluster", True, "left out"))


@pytest.mark.usefixtures("no_cluster")
def test_all_well(night, config_file, capsys):
    assert doctor.examine(config_file(), (), None, as_json=False) == 0
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
    assert doctor.examine(None, (), None, as_json=True) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"machine", "libraries", "known answer", "cluster"}


@pytest.mark.usefixtures("no_cluster")
def test_each_failing_check_is_said_and_the_others_go_on(night, config_file, tmp_path, capsys):
    (tmp_path / "in-the-way").write_text("")
    path = config_file(store=str(tmp_path / "in-the-way"), input={"url": str(tmp_path / "nowhere")})
    assert doctor.examine(path, (), None, as_json=True) == 1
    results = json.loads(capsys.readouterr().out)
    assert {name for name, result in results.items() if not result["ok"]} == {"store", "input"}
    assert str(tmp_path / "in-the-way") in results["store"]["found"]
    assert "nowhere does not exist" in results["input"]["found"]
    doctor.examine(path, (), None, as_json=False)
    said = capsys.readouterr().out
    assert "FAIL store: " in said
    assert "FAIL input: " in said


def test_cluster_that_does_not_answer_is_a_failed_check(monkeypatch, capsys):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever other tests have started
    monkeypatch.setattr("ray.shutdown", lambda: None)
    assert doctor.examine(None, (), "127.0.0.1:9", as_json=False) == 1
    assert "FAIL cluster: cluster.address: no Ray cluster can be joined at 127.0.0.1:9" in capsys.readouterr().out


@pytest.mark.usefixtures("no_cluster")
def test_library_that_is_not_installed_is_shown_as_absent(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "LIBRARIES", ("pyarrow", "no-such-library"))
    assert doctor.examine(None, (), None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)["libraries"]["found"]
    assert found.startswith("pyarrow ")
    assert found.endswith(", no-such-library -")


def test_torch_that_computes_wrongly_fails(monkeypatch, capsys, no_cluster):
    import torch

    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda image, kernel: torch.zeros(1, 1, 3, 3))
    assert doctor.examine(None, (), None, as_json=True) == 1
    assert "reinstall torch" in json.loads(capsys.readouterr().out)["known answer"]["found"]


@pytest.mark.usefixtures("ray_session")
def test_cluster_says_what_the_session_has(capsys):
    assert doctor.examine(None, (), None, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert "4 CPUs" in found["cluster"]["found"]
    assert "workers import the same nightshift" in found["cluster"]["found"]
    assert not [name for name in found if name.startswith("head")], (
        "a session here is this machine, which is shown already"
    )


@pytest.mark.usefixtures("ray_session")
def test_of_a_cluster_every_node_is_asked(config_file, capsys):
    assert doctor.examine(config_file(), (), "auto", as_json=False) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("ok   head "))
    assert "4 CPUs, 0 GPUs" in line
    assert "torch " in line
