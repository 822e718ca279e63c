"""The command robustness, in this process; and what its workers count, against labelling spoilt pictures one by one."""

import json

import numpy as np
import pyarrow as pa
import pytest

from jobs import robustness
from jobs.runs import Run, execute
from pipeline.batches import Batch
from pipeline.bundle import load_bundle
from pipeline.corruptions import CORRUPTIONS, by_name
from pipeline.errors import ModelError
from pipeline.images import decode
from pipeline.labelling import Predictor
from pipeline.probing import Prober
from pipeline.rows import ShardReader
from pipeline.tasks import ProbeTask


def run(night, config, split=None) -> dict:
    started = Run("robustness", config, None)
    execute(started, lambda current: robustness.work(current, split))
    return started.record


@pytest.fixture
def asked(night):
    night.write("a.parquet", range(30), split=["train"] * 10 + ["val"] * 20)
    config = night.config(
        input={"split_column": "split", "shard_images": 10},
        robustness={"corruptions": ["gaussian_noise", "rotation"]},
        label={"exact": True},
    )
    version = night.seal()
    night.plan(config)
    return config, version


def test_what_is_counted_is_what_the_model_says(night, workers, asked, capsys):
    config, version = asked
    record = run(night, config)
    assert record["exit_code"] == 0
    found = record["robustness"]
    assert json.loads(night.store.read(f"models/tiny/{version}/robustness.json")) == found
    assert (found["num_images"], found["num_labelled"], found["split"]) == (20, 20, "val")

    predictor = Predictor(load_bundle(night.store, "tiny", version), 1)
    rows = [
        r for shard in workers.shards for part in ShardReader(config.input, config.storage).read(shard) for r in part
    ]
    rows = [row for row in rows if row.split == "val"]
    pixels = [predictor.transforms.pixels(decode(row.data, "L", 10**6).image) for row in rows]

    def labels(pictures):
        batch = Batch(rows, [(8, 8)] * len(rows), np.stack(pictures), [])
        return [("ant", "bee", "cat")[k] for k in predictor.answers(batch).indices[:, 0]]

    clean = labels(pixels)
    assert found["clean_error"] == pytest.approx(np.mean([c != r.label for c, r in zip(clean, rows, strict=True)]))
    for row in found["corruptions"]:
        corruption = by_name()[row["name"]]
        for severity in (1, 2, 3, 4, 5):
            spoilt = labels([corruption(p, severity, r.content_hash) for p, r in zip(pixels, rows, strict=True)])
            assert row["error"][severity - 1] == pytest.approx(
                np.mean([s != r.label for s, r in zip(spoilt, rows, strict=True)])
            )
            assert row["flips"][severity - 1] == pytest.approx(
                np.mean([s != c for s, c in zip(spoilt, clean, strict=True)])
            )
    example = found["example"]
    place = next(i for i, row in enumerate(rows) if row.content_hash == example["key"])
    assert example["said"]["clean"] == [clean[place]]
    assert example["label"] == rows[place].label
    said = capsys.readouterr().err
    assert "20 images of the split val: clean error" in said
    assert "evaluate.slices" in said


def test_a_part_of_many_images_is_the_same_part_every_time(night, workers, asked):
    config, _ = asked
    fewer = config.model_copy(update={"robustness": config.robustness.model_copy(update={"max_images": 7})})
    found = [run(night, fewer)["robustness"] for _ in range(2)]
    assert found[0]["num_images"] == 8  # four of each of two shards
    assert found[0]["corruptions"] == found[1]["corruptions"]


def test_without_labels_flips_are_counted(night, workers, capsys):
    night.write("a.parquet", range(10), label=pa.nulls(10, pa.string()), split=["val"] * 10)
    config = night.config(input={"split_column": "split"}, robustness={"corruptions": ["border"]})
    night.seal()
    night.plan(config)
    found = run(night, config)["robustness"]
    assert (found["num_images"], found["num_labelled"], found["clean_error"]) == (10, 0, None)
    assert "none with a label: only flips can be counted" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_counted(night, workers):
    images = pa.array([night.png(1), b"bad", None], pa.binary())
    night.write("a.parquet", [1, 2, 3], image=images, split=["val"] * 3)
    config = night.config(input={"split_column": "split"}, robustness={"corruptions": ["border"]})
    night.seal()
    night.plan(config)
    found = run(night, config)["robustness"]
    assert (found["num_images"], found["quarantined"]) == (1, 1)  # without bytes there is nothing to spoil


@pytest.mark.parametrize(
    ("split", "names", "words"),
    [
        ("test", [], "the test set is for one look of each version"),
        ("val+test", [], "the test set is for one look"),
        ("nothing", [], "no image that can be read belongs to the split nothing"),
        (None, ["frog"], "there is no 'frog'; there are rotation, shear"),
    ],
)
def test_what_cannot_be_probed_is_refused(night, workers, asked, split, names, words):
    config, _ = asked
    config = config.model_copy(
        update={"robustness": config.robustness.model_copy(update={"corruptions": tuple(names)})}
    )
    record = run(night, config, split)
    assert record["exit_code"] == 2
    assert words in record["outcome"]


def test_a_shard_that_fails_holds_everything_back(night, workers, asked):
    config, version = asked
    workers.gives_up = {"a.parquet"}
    assert run(night, config)["exit_code"] == 3
    assert f"models/tiny/{version}/robustness.json" not in [entry.path for entry in night.store.list("models")]


def test_a_multi_label_model_is_wrong_where_a_label_is(night, workers):
    labels = [["ant"], ["bee", "cat"], [], None]
    night.write("a.parquet", range(4), labels=labels, split=["val"] * 4)
    config = night.config(
        input={"split_column": "split", "label_column": None, "labels_column": "labels"},
        robustness={"corruptions": ["border"]},
    )
    night.seal(change=lambda net: (net.fc.weight.data.zero_(), net.fc.bias.data.fill_(-5.0)), thresholds=(0.5,) * 3)
    night.plan(config)
    found = run(night, config)["robustness"]
    assert (found["num_images"], found["num_labelled"]) == (4, 3)
    assert found["clean_error"] == pytest.approx(2 / 3)  # it says nothing of any picture, which is right of one
    assert found["corruptions"][0]["flips"] == [0] * 5


def test_all_corruptions_are_asked_about_unless_some_are_named(night, workers, asked):
    config, _ = asked
    config = config.model_copy(
        update={"robustness": config.robustness.model_copy(update={"corruptions": (), "max_images": 2})}
    )
    assert [row["name"] for row in run(night, config)["robustness"]["corruptions"]] == [c.name for c in CORRUPTIONS]


def test_a_model_of_another_kind_is_refused(night, workers, asked):
    config, _ = asked
    many = config.input.model_copy(update={"label_column": None, "labels_column": "label"})
    record = run(night, config.model_copy(update={"input": many}))
    assert record["exit_code"] == 2
    assert "answers with one label for an image" in record["outcome"]


def test_a_multi_label_model_without_truth_has_flips_alone(night, workers):
    night.write("a.parquet", range(4), split=["val"] * 4)
    config = night.config(input={"split_column": "split", "label_column": None}, robustness={"corruptions": ["border"]})
    night.seal(thresholds=(0.5,) * 3)
    night.plan(config)
    found = run(night, config)["robustness"]
    assert (found["num_labelled"], found["clean_error"]) == (0, None)


def test_a_model_that_answers_no_numbers_is_no_robust_one(night, workers, asked):
    config, _ = asked
    version = night.seal(change=lambda net: net.fc.bias.data.fill_(float("nan")))
    named = config.model_copy(update={"model": config.model.model_copy(update={"version": version})})
    with pytest.raises(ModelError, match="NaN or infinite"):
        open_and_probe(night, named, version)


def open_and_probe(night, config, version):
    task = ProbeTask(night.task(config, version), config.input, config.split, ("val",), ("border",), (1,), 5)
    for shard in night.plan(config).shards:
        Prober(task)(shard)


def test_more_shards_than_images_are_not_all_looked_into(night, workers):
    night.write("a.parquet", range(30), 1, split=["val"] * 30)
    config = night.config(
        input={"split_column": "split", "shard_images": 1}, robustness={"corruptions": ["border"], "max_images": 4}
    )
    night.seal()
    night.plan(config)
    assert run(night, config)["robustness"]["num_images"] == len(workers.shards) == 4


def test_a_label_that_the_model_does_not_know_is_no_error(night, workers):
    night.write("a.parquet", range(6), label=["yak"] * 4 + ["ant"] * 2, split=["val"] * 6)
    config = night.config(input={"split_column": "split"}, robustness={"corruptions": ["border"]})
    night.seal(
        change=lambda net: (net.fc.weight.data.zero_(), net.fc.bias.data.copy_(net.fc.bias.data.new_tensor([9, 0, 0])))
    )
    night.plan(config)
    found = run(night, config)["robustness"]
    assert (found["num_images"], found["num_labelled"], found["clean_error"]) == (6, 2, 0.0)
