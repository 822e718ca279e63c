import json

import pytest
from conftest import published

from jobs.cli import main
from pipeline.publication import read_view
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

QUICK = ["--set", "train.epochs=1", "--set", "train.workers=1", "--set", "label.max_workers=1"]


def demo(folder, capsys, *arguments):
    capsys.readouterr()
    code = main(["demo", "--folder", str(folder), "--json", *arguments])
    said = capsys.readouterr()
    return code, json.loads(said.out.splitlines()[-1]), said.err


def check_counts(folder, code, record):
    assert code == 0, record["outcome"]
    assert [record[key] for key in ("images_in", "labelled", "quarantined", "failed_shards")] == [1801, 1797, 4, 0]
    store = open_storage(str(folder / "store"), StorageSettings())
    assert read_view(store, "digits").document["counts"] == {"images_in": 1801, "labelled": 1797, "quarantined": 4}
    rows = published(store, "digits")
    assert len({row[0] for row in rows}) == 1797
    assert (folder / "store/runs" / record["run_id"] / "report.html").stat().st_size > 10_000


def test_a_whole_night_on_the_digits(ray_session, tmp_path, capsys):
    code, record, said = demo(tmp_path / "demo", capsys, *QUICK)
    check_counts(tmp_path / "demo", code, record)
    assert [stage["name"] for stage in record["stages"]] == ["plan", "examples", "train", "evaluate", "label"]
    assert "quarantined:" in said
    for bad in ("bad-truncated", "bad-empty", "bad-not-an-image", "bad-null"):
        assert bad in said
    again, second, said = demo(tmp_path / "demo", capsys, *QUICK)
    assert "this demo ran here before" in said
    assert (again, second["labelled"], second["skipped"]) == (0, 0, 1801)


def test_fresh_removes_an_earlier_demo_and_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jobs.demo.execute", lambda run, work: 0)
    monkeypatch.setattr("jobs.demo.announce_report", lambda *_: None)
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("years of work")
    assert main(["demo", "--folder", str(mine), "--fresh"]) == 2
    assert "holds no earlier demo, so it is left alone" in capsys.readouterr().err
    assert (mine / "chapter.tex").read_text() == "years of work"
    assert main(["demo", "--folder", str(tmp_path / "demo")]) == 0
    (tmp_path / "demo/old.txt").touch()
    assert main(["demo", "--folder", str(tmp_path / "demo"), "--fresh"]) == 0
    assert not (tmp_path / "demo/old.txt").exists()


@pytest.mark.chaos
def test_the_demo_recognises_at_least_97_percent_of_the_held_out_digits(ray_session, tmp_path, capsys):
    code, record, _ = demo(tmp_path / "demo", capsys)
    check_counts(tmp_path / "demo", code, record)
    evaluations = list((tmp_path / "demo/store/models/digits").glob("*/evaluation.json"))
    figures = json.loads(evaluations[0].read_text())
    assert len(evaluations) == 1
    assert figures["top1"] >= 0.97
    assert 300 < figures["num_images"] < 420
