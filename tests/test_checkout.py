from dataclasses import replace
from pathlib import Path

import pytest

import pipeline
from cluster import checkout as module
from cluster.checkout import code_digest, code_root, program, refuse_other
from pipeline.errors import UsageError


def test_the_root_is_the_folder_of_the_three_packages():
    assert {"pipeline", "cluster", "jobs"} <= {path.name for path in Path(code_root()).iterdir()}
    assert Path(pipeline.__file__).is_relative_to(code_root())


def test_other_code_is_refused_and_the_same_is_not():
    refuse_other(program())
    with pytest.raises(
        UsageError, match=rf"nightshift from /elsewhere, this process from {code_root()}; start the command from"
    ):
        refuse_other(replace(program(), root="/elsewhere"))


def test_what_came_with_a_job_is_known_by_its_digest_wherever_it_is_unpacked(monkeypatch):
    monkeypatch.setattr(module, "code_root", lambda: "/tmp/ray/session_1/files/_ray_pkg_0123")
    refuse_other(replace(program(), root="/scratch/session_1/files/_ray_pkg_0123"))
    with pytest.raises(UsageError, match="_ray_pkg_4567"):
        refuse_other(replace(program(), root="/tmp/ray/session_1/files/_ray_pkg_4567"))


def test_another_torch_is_refused_with_the_workers_name():
    other = replace(program(), versions=(("torch", "1.0"), program().versions[1]))
    with pytest.raises(UsageError, match=r"worker 7: torch is 1\.0 there and .* `nightshift doctor --address`"):
        refuse_other(other, "worker 7")
    missing = replace(program(), versions=(program().versions[0], ("torchvision", None)))
    with pytest.raises(UsageError, match="torchvision is missing there"):
        refuse_other(missing)


def test_who_only_drives_may_do_without_torch(monkeypatch):
    there = program()
    monkeypatch.setattr(module, "library_versions", dict.fromkeys)
    refuse_other(there)


def test_the_code_has_a_digest_that_every_change_changes(tmp_path, monkeypatch):
    for name in ("jobs", "pipeline", "cluster"):
        (tmp_path / name).mkdir()
    (tmp_path / "jobs/a.py").write_text("1")
    monkeypatch.setattr(module, "code_root", lambda: str(tmp_path))
    first = code_digest()
    assert (code_digest(), len(first)) == (first, 12)
    (tmp_path / "jobs/a.py").write_text("2")
    second = code_digest()
    (tmp_path / "jobs/a.py").rename(tmp_path / "jobs/b.py")
    assert len({first, second, code_digest()}) == 3
