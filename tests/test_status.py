import json
from dataclasses import replace

import pyarrow as pa

from jobs.runs import Run, execute
from jobs.status import RUNS_SHOWN, show
from pipeline.counts import Counts
from pipeline.documents import encode
from pipeline.publication import publish


def state(config, capsys) -> dict:
    assert show(config, True) == 0
    return json.loads(capsys.readouterr().out)


def fill(night):
    """A plan, two models of which one labelled and was judged, a view, runs of this data set and of another."""
    night.write("a.parquet", [1, 2, 3])
    night.write("b.parquet", [4, 5], image=pa.array([night.png(4), b"bad"], pa.binary()))
    (night.data / "notes.txt").write_text("")
    config = night.config(input={"shard_images": 3})
    version, other = night.seal(seed=1), night.seal(seed=2)
    figures = {"dataset": "data", "split": "test", "num_images": 1200, "top1": 0.875, "loss": 0.3}
    night.store.write(f"models/tiny/{version}/evaluation.json", encode(figures))
    night.whole(config, version)
    for number in range(RUNS_SHOWN + 2):
        execute(Run("label", config, f"r{number:02d}"), lambda run: run.count(Counts(5, 4, 1)))
    foreign = Run("label", night.config(input={"name": "other"}), "foreign")
    execute(foreign, lambda run: run.note(started_at="2999-01-01T00:00:00+00:00"))
    return config, version, other


def test_empty_store_has_none_of_anything(night, capsys):
    found = state(night.config(), capsys)
    assert (found["dataset"], found["store"]) == ("data", night.store.url)
    empty = {"plan": None, "models": [], "production": None, "generations": [], "view": None, "runs": []}
    assert {key: found[key] for key in empty} == empty
    assert show(night.config(), False) == 0
    assert capsys.readouterr().out.count("none yet") == 5


def test_full_store_is_listed(night, capsys):
    config, version, other = fill(night)
    found = state(config, capsys)
    assert found["plan"] == {"n": 1, "images": 5, "shards": 2, "ignored_files": 1, "failed_files": []}
    assert {model["version"]: model["evaluation"] for model in found["models"]} == {
        version: {"dataset": "data", "split": "test", "num_images": 1200, "top1": 0.875},
        other: None,
    }
    assert found["production"] == version
    (generation,) = found["generations"]
    assert (generation["name"], generation["committed_shards"]) == (found["view"]["generation"], 2)
    assert found["view"]["counts"] == {"images_in": 5, "labelled": 4, "quarantined": 1}
    assert [run["run_id"] for run in found["runs"]][-1] == f"r{RUNS_SHOWN + 1:02d}"
    assert len(found["runs"]) == RUNS_SHOWN
    assert "foreign" not in [run["run_id"] for run in found["runs"]]


def test_full_store_is_told_to_people(night, capsys):
    config, version, other = fill(night)
    show(config, False)
    said = capsys.readouterr().out
    assert "plan 1: 5 images in 2 shards; ignored: 1 other file; cannot be read: 0 files" in said
    assert f"{version} (production): top-1 87.5% on 1,200 images of data test" in said
    assert f"{other}: not evaluated" in said
    assert ": 2 committed shards" in said
    assert ": 4 labels of tiny@" in said
    assert "r09: 4 labelled, 1 quarantined, 0 done before, 0 s; 0 (complete)" in said
    assert "none yet" not in said


def test_a_view_of_several_generations_names_them_all(night, capsys):
    night.write("a.parquet", [1, 2, 3])
    config = night.config()
    version = night.seal()
    first = night.plan(config)
    ledger = night.label(config, first, version)
    night.write("b.parquet", [4, 5])
    second = night.plan(config)
    other = night.config(label={"top_k": 1})
    new = replace(second, shards=tuple(shard for shard in second.shards if shard not in first.shards))
    parts = [
        (night.task(other, version).generation, night.label(other, new, version)),
        (night.task(config, version).generation, ledger),
    ]
    publish(night.store, parts, second, {"model": f"tiny@{version}", "run_id": "r", "published_at": "now"})
    names = [generation.name for generation, _ in parts]
    assert state(config, capsys)["view"]["generations"] == dict.fromkeys(names, 1)
    show(config, False)
    said = capsys.readouterr().out
    assert "5 labels of" in said
    assert all(f"{name} (1 shard)" in said for name in names)
