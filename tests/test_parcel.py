import datetime
import zipfile
from pathlib import Path

import pytest

from jobs import parcel as module
from jobs.config import read_config
from jobs.parcel import pack
from pipeline.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


def test_the_packages_and_the_resolved_config_are_sent_and_nothing_else(night, tmp_path):
    parcel = pack(night.config(), (), tmp_path / "p.zip")
    names = set(zipfile.ZipFile(parcel.path).namelist())
    code = {f"{path.parent.name}/{path.name}" for name in module.PACKAGES for path in (ROOT / name).glob("*.*")}
    assert names == code | {"submitted.yaml"}
    assert [name for name in names if name.endswith(".j2")], "the page's template is part of it"
    assert set(parcel.sizes) == names


ODD = {
    "label": {"deadline": "22:30", "columns": ["day", "price"]},
    "input": {"filter": [["price", ">", 1e-7], ["day", ">", datetime.date(2026, 1, 1)], ["day", "!=", "2026-01-01"],
                         ["n", "in", [1, 2.5, True, "yes", "1e-7", "="]]]},
    "model": {"arguments": {"eps": 1e-06, "a": float("inf"), "none": None, "text": "null", "deep": {"x": [1e20]}}},
    "date": datetime.date(2026, 11, 24),
}  # fmt: skip


def test_every_value_arrives_as_what_it_is(night, tmp_path):
    config = night.config(**ODD)
    (tmp_path / "sent.yaml").write_bytes(zipfile.ZipFile(pack(config, (), tmp_path / "p.zip").path).read(module.CONFIG))
    sent = read_config(str(tmp_path / "sent.yaml"))
    assert sent == config
    assert repr(sent.input.filter) == repr(config.input.filter)
    assert repr(sent.model.arguments) == repr(config.model.arguments)


@pytest.mark.parametrize("value", ["${NO_SUCH_VARIABLE}", "${HOME}"])
def test_a_value_that_would_be_another_one_there_is_refused(night, tmp_path, value):
    with pytest.raises(UsageError, match="the config cannot be sent as it is"):
        pack(night.config(model={"arguments": {"a": value}}), (), tmp_path / "p.zip")


def test_the_same_files_make_the_same_package(night, tmp_path):
    first, second = (pack(night.config(), (), tmp_path / name).path.read_bytes() for name in ("a.zip", "b.zip"))
    assert first == second


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout that stands for this one."""
    root = tmp_path / "checkout"
    for name in ("pyproject.toml", "jobs/a.py", "pipeline/__init__.py", "cluster/c.py", "notes.txt", ".env", ".git/config",
                 "store/labels.bin", "jobs/__pycache__/a.pyc", "id.pem", "deep/.secret/x", "deep/data/x", "deep/x.py"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setattr(module, "code_root", lambda: str(root))
    return root


def test_hidden_files_data_and_keys_stay_here(checkout, tmp_path):
    assert set(pack(None, (), tmp_path / "p.zip").sizes) == {"jobs/a.py", "pipeline/__init__.py", "cluster/c.py"}


def test_modules_of_ones_own_stand_at_the_top(checkout, tmp_path):
    own = tmp_path / "mine"
    (own / "nets/__pycache__").mkdir(parents=True)
    (own / "nets/wide.py").write_text("")
    for name in ("data", "build", ".git"):
        (own / "nets" / name).mkdir()
        (own / "nets" / name / "a.py").write_text("")
    (own / "nets/__pycache__/wide.pyc").write_text("")
    (own / "small.py").write_text("")
    sizes = pack(None, (str(own / "nets"), str(own / "small.py")), tmp_path / "p.zip").sizes
    assert {"nets/wide.py", "nets/data/a.py", "nets/build/a.py", "small.py"} <= set(sizes)
    assert "nets/.git/a.py" not in sizes
    assert not [name for name in sizes if "pyc" in name]


@pytest.mark.parametrize(("name", "words"), [("nowhere", "does not exist"), ("jobs", "there is a jobs already")])
def test_what_cannot_be_sent_along_is_refused(checkout, tmp_path, name, words):
    if name != "nowhere":
        (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match=words):
        pack(None, (str(tmp_path / name),), tmp_path / "p.zip")


def test_more_than_is_allowed_is_refused_with_the_largest(night, checkout, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/huge.bin").write_bytes(bytes(3_000_000))
    with pytest.raises(UsageError, match=r"3\.0 MB would be sent .*max_upload_mb is 2 \(largest: models 3\.0 MB, "):
        pack(night.config(cluster={"max_upload_mb": 2}), (str(tmp_path / "models"),), tmp_path / "p.zip")
    assert not (tmp_path / "p.zip").exists()


def test_what_cannot_be_read_is_said(checkout, tmp_path):
    (checkout / "jobs/broken.py").symlink_to(tmp_path / "nowhere")
    pack(None, (), tmp_path / "p.zip")  # leads nowhere, so there is nothing to send
    with pytest.raises(UsageError, match="no/such/folder"):
        pack(None, (), tmp_path / "no/such/folder/p.zip")
