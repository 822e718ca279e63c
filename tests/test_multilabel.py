"""Images with any number of labels, from the input's columns to label files, in this process."""

import io
import json
from collections import Counter
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pytest
from judging import evaluate
from PIL import Image
from sklearn import metrics

from jobs.config import Config
from jobs.labels import show
from pipeline.bundle import load_bundle
from pipeline.classes import classes_from_labels
from pipeline.errors import ConfigError
from pipeline.examples import fingerprint, load_examples
from pipeline.features import Extractor
from pipeline.fitting import fit, start_network
from pipeline.gallery import gather
from pipeline.page import render
from pipeline.pulse import Pulse
from pipeline.registry import promote_first, read_bundle_document
from pipeline.review import write_review
from pipeline.seat import Seat
from pipeline.splits import split_of
from pipeline.tables import read_table
from pipeline.tasks import ExamplesTask, TrainTask
from pipeline.truths import names_in

NUM = 160
SIDES = ("left", "right")
COLOURS = {"resize_px": 8, "crop_px": 8, "color": "L", "mean": [0.5], "std": [0.5]}
TRAIN = {"mode": "scratch", "epochs": 30, "batch_size": 16, "learning_rate": 0.01, "sanity": False}


def picture(number: int) -> bytes:
    """Return noise of 8 x 8, brighter on the sides that the two lowest bits of its number name."""
    pixels = np.random.default_rng(number).integers(0, 100, (8, 8), dtype=np.uint8)
    pixels[:, :4] += 150 * (number & 1)
    pixels[:, 4:] += 150 * (number >> 1 & 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels, "L").save(buffer, "PNG")
    return buffer.getvalue()


def sides_of(number: int) -> list[str]:
    return [side for bit, side in enumerate(SIDES) if number >> bit & 1]


def write(night, labels=None, absent=None) -> None:
    numbers = range(NUM)
    columns = {
        "image": pa.array([picture(number) for number in numbers], pa.binary()),
        "labels": labels or [sides_of(number) for number in numbers],
        "split": [("train", "train", "val", "test")[number // 4 % 4] for number in numbers],
    }
    if absent is not None:
        columns["absent"] = pa.array(absent, pa.list_(pa.string()))
    night.write("a.parquet", list(numbers), **columns)


def config_of(night, **sections) -> Config:
    source = {"label_column": None, "labels_column": "labels", "split_column": "split", "shard_images": 40}
    return night.config(
        **sections
        | {
            "input": source | sections.get("input", {}),
            "train": TRAIN | sections.get("train", {}),
            "model": {"transforms": COLOURS} | sections.get("model", {}),
        }
    )


def task_of(night, config, plan) -> TrainTask:
    """Return what workers are given for a new training, the example tables made."""
    source, cached = config.input, config.train.mode == "head"
    name = fingerprint(source, config.model, "w" if cached else None, "")
    extract = Extractor(
        ExamplesTask(config.store, config.storage, source, plan.dataset, config.model, config.train, name, cached)
    )
    for shard in plan.shards:
        extract(shard)
    examples = load_examples(night.store, plan.dataset, name, plan.shards, config.split, source.multi_label)
    classes = classes_from_labels(
        (label for i in examples.of("train") for label in names_in(examples.labels[i])), fewest=1
    )
    return TrainTask(
        config.store, config.storage, source, config.split, config.model, config.train, 0, plan.dataset, plan.shards, name,
        classes.names, uuid4().hex, "2026-11-24T00:00:00+00:00",
    )  # fmt: skip


def trained(night, config) -> tuple[str, dict]:
    plan = night.plan(config)
    result = fit(task_of(night, config, plan), Seat(), lambda module: module, Pulse())
    promote_first(night.store, config.model.name, result["version"], "now")
    return result["version"], result


def labelled(night, config, version: str) -> list[dict]:
    view = night.whole(config, version)
    return [row for path in view.files for row in read_table(night.store, path).to_pylist()]


def test_what_is_learnt_is_labelled_and_judged_as_scikit_learn_would(night, workers):
    write(night)
    config = config_of(night, label={"exact": True, "top_k": 2})
    version, result = trained(night, config)
    assert [set(record) >= {"val_map", "val_top1"} for record in result["history"]] == [True] * 30
    assert result["history"][0]["train_loss"] == pytest.approx(np.log(2), rel=0.3)
    assert result["history"][-1]["val_map"] > 0.99

    document = read_bundle_document(night.store, "tiny", version)
    assert (document["format"], len(document["thresholds"])) == (2, 2)
    bundle = load_bundle(night.store, "tiny", version)
    assert bundle.thresholds == tuple(document["thresholds"])

    rows = {row["image_id"]: row for row in labelled(night, config, version)}
    right = [sorted(rows[number]["labels"]) == sides_of(number) for number in range(NUM)]
    assert sum(right) > 0.95 * NUM
    for row in rows.values():
        assert [SIDES[index] for index in row["class_indices"]] == row["labels"]
        said = [best["label"] for best in row["top_k"] if best["probability"] >= bundle.thresholds[best["class_index"]]]
        assert row["labels"] == said  # the surest first
        assert (row["label"], row["confidence"]) == (row["top_k"][0]["label"], row["top_k"][0]["probability"])

    evaluate(night, config, "test")
    found = json.loads(night.store.read(f"models/tiny/{version}/evaluation.json"))
    judged = [number for number in range(NUM) if number // 4 % 4 == 3]
    truth = np.array([[side in sides_of(number) for side in SIDES] for number in judged])
    scores, said = np.zeros((len(judged), 2), np.float32), np.zeros((len(judged), 2), bool)
    for i, number in enumerate(judged):
        for best in rows[number]["top_k"]:
            scores[i, best["class_index"]] = best["probability"]
        said[i, rows[number]["class_indices"]] = True
    assert (found["task"], found["num_images"]) == ("multi_label", len(judged))
    assert found["map"] == pytest.approx(metrics.average_precision_score(truth, scores, average="macro"))
    assert found["micro"]["f1"] == pytest.approx(metrics.f1_score(truth, said, average="micro"))
    assert found["exact"] == pytest.approx(metrics.accuracy_score(truth, said))


def test_labels_that_nobody_looked_for_teach_nothing(night):
    """Half of the training images hide a side that is there; only the column of absent ones says that it is unknown."""
    hidden = [number for number in range(NUM) if number // 4 % 4 < 2 and number // 16 % 2]
    labels = [[side for side in sides_of(n) if n not in hidden or side == "right"] for n in range(NUM)]
    absent = [
        [side for side in SIDES if side not in sides_of(n) and side == "right"] if n in hidden else None
        for n in range(NUM)
    ]
    write(night, labels, absent)
    _, believing = trained(night, config_of(night))
    _, knowing = trained(night, config_of(night, input={"absent_column": "absent"}))
    assert knowing["history"][-1]["val_loss"] < 0.75 * believing["history"][-1]["val_loss"]


@pytest.mark.parametrize("augment", [{}, {"mixup": 0.2, "cutmix": 1.0, "flip": "both"}])
def test_softened_mixed_and_accumulated_batches_are_learnt_too(night, augment):
    write(night)
    train = {
        "epochs": 3,
        "label_smoothing": 0.1,
        "accumulate": 2,
        "average": 0.9,
        "early_stopping": 3,
        "augment": augment,
    }
    _, result = trained(night, config_of(night, train=train))
    history = result["history"]
    assert history[-1]["val_loss"] < history[0]["val_loss"]


def test_text_is_cut_into_labels_and_one_class_is_enough(night):
    write(night, labels=["; ".join(sides_of(number)[:1]) for number in range(NUM)])
    version, _ = trained(night, config_of(night, train={"epochs": 1}))
    assert load_bundle(night.store, "tiny", version).architecture.classes.names == SIDES
    night.data.joinpath("a.parquet").unlink()
    write(night, labels=["left" if number & 1 else "" for number in range(NUM)])
    version, _ = trained(night, config_of(night, train={"epochs": 20}))
    bundle = load_bundle(night.store, "tiny", version)
    assert (bundle.architecture.classes.names, len(bundle.thresholds)) == (("left",), 1)
    rows = labelled(night, config_of(night), version)
    assert sum((row["labels"] == ["left"]) == bool(row["image_id"] & 1) for row in rows) > 0.9 * NUM


def test_a_second_stage_keeps_the_head_of_its_own_kind_only(night):
    write(night)
    config = config_of(night, train={"epochs": 1})
    version, _ = trained(night, config)
    second = config_of(night, train={"mode": "finetune"}, model={"weights": f"tiny@{version}"})
    task = task_of(night, second, night.plan(second))
    assert not start_network(task, night.store).fresh_head
    single = replace(task, input=task.input.model_copy(update={"labels_column": None}))
    assert start_network(single, night.store).fresh_head


def test_the_view_is_shown_copied_reviewed_and_drawn(night, capsys, tmp_path):
    write(night)
    config = config_of(night, label={"review_below": 0.9}, output={"table": "delta"}, train={"epochs": 3})
    version, _ = trained(night, config)
    view = night.whole(config, version)
    rows = [row for path in view.files for row in read_table(night.store, path).to_pylist()]

    show(config, None, 3, False)
    shown = [line.split("\t") for line in capsys.readouterr().out.splitlines()[:3]]
    assert [line[1] for line in shown] == [", ".join(row["labels"]) or "-" for row in rows[:3]]
    for suffix in (".csv", ".parquet", ".jsonl"):
        show(config, str(tmp_path / f"copy{suffix}"), 1, False)
    copied = [json.loads(line) for line in (tmp_path / "copy.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in copied] == [row["labels"] for row in rows]

    review = write_review(night.store, view, {}, 0.9)
    assert "labels" in read_table(night.store, review.path).column_names

    run = {"run_id": "night-1", "command": "label", "dataset": config.dataset, "model": f"tiny@{version}"}
    run["fingerprint"] = night.task(config, version).generation.fingerprint
    page = gather(night.store, run, config.input, config.storage)
    counted = {side: sum(side in row["labels"] for row in rows) for side in SIDES}
    assert dict(page.label_counts) == {side: count for side, count in counted.items() if count}
    assert "Mean average precision" in render(page)


def test_counts_of_a_shard_with_a_vanished_file_are_read_again(night):
    write(night)
    night.write("b.parquet", [1000], image=pa.array([picture(3)]), labels=[["left", "right"]], split=["train"])
    config = config_of(night, input={"shard_images": 1000}, train={"epochs": 20})
    version, _ = trained(night, config)
    plan = night.plan(config)
    [entry] = night.label(config, plan, version).values()
    labels = dict(
        zip(*read_table(night.store, entry.labels.path, ("image_id", "labels")).to_pydict().values(), strict=True)
    )
    assert len(labels.pop(1000)) == 2
    (night.data / "b.parquet").unlink()
    night.plan(config)
    run = {"run_id": "night-1", "command": "label", "dataset": config.dataset, "model": f"tiny@{version}"}
    run["fingerprint"] = night.task(config, version).generation.fingerprint
    page = gather(night.store, run, config.input, config.storage)
    assert sum(page.confidence_counts) == len(labels) == NUM
    assert dict(page.label_counts) == Counter(label for row in labels.values() for label in row)


def test_a_model_of_the_other_kind_is_not_judged(night, workers, capsys):
    write(night)
    sets, ones = config_of(night, train={"epochs": 1}), night.config(input={"split_column": "split"})
    version, _ = trained(night, sets)
    for config in (ones, night.config(input={"split_column": "split", "label_column": None})):
        assert evaluate(night, config, "test")["exit_code"] == 2
        said = capsys.readouterr().err
        assert f"tiny@{version} answers with any number of labels for an image" in said
        assert "set input.labels_column (which is None, and no other)" in said
    other = sets.model_copy(update={"model": sets.model.model_copy(update={"version": night.seal()})})
    assert evaluate(night, other, "test")["exit_code"] == 2
    assert "answers with one label for an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"input": {"label_column": "label"}}, "give label_column .* or labels_column .* not both"),
        ({"input": {"labels_column": None, "absent_column": "absent"}}, "absent_column belongs to labels_column"),
        ({"model": {"threshold": 0.4}}, "model.threshold is for weights that are adopted as they are"),
        ({"train": {"balance": "loss"}}, "train.balance: loss is for images with one label each"),
    ],
)
def test_what_does_not_go_together_is_refused(night, sections, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        config_of(night, **sections)


def test_average_precision_on_coco_is_that_of_scikit_learn(night, workers, shared_data):
    """The real thing: photos, 71 categories, a pretrained backbone; equality is looked at, small pictures are enough."""
    weights = shared_data / "weights" / "squeezenet1_1_imagenet.safetensors"
    config = Config.model_validate(
        {
            "store": night.store.url,
            "input": {
                "url": str(shared_data / "coco128"), "image_column": "image", "id_column": "image_id",
                "labels_column": "labels", "shard_images": 64, "size_px": 64,
            },
            "split": {"val": 0.2, "test": 0.3},
            "model": {"name": "tiny", "builder": "squeezenet1_1", "weights": str(weights)},
            "train": {"preset": "transfer", "sanity": False},
            "label": {"top_k": 80, "exact": True},
        }
    )  # fmt: skip
    version, _ = trained(night, config)
    rows = labelled(night, config, version)
    evaluate(night, config, "test")
    found = json.loads(night.store.read(f"models/tiny/{version}/evaluation.json"))

    truths = read_table_of(shared_data / "coco128")
    judged = [row for row in rows if split_of(row["content_hash"], config.split) == "test"]
    names = found["classes"]
    truth = np.array([[name in truths[row["image_id"]] for name in names] for row in judged])
    scores = np.zeros(truth.shape, np.float32)
    for i, row in enumerate(judged):
        for best in row["top_k"]:
            scores[i, best["class_index"]] = best["probability"]
    occurs = truth.any(axis=0)
    assert (found["num_images"], 20 < occurs.sum() < len(names)) == (len(judged), True)
    expected = metrics.average_precision_score(truth[:, occurs], scores[:, occurs], average="macro")
    assert found["map"] == pytest.approx(expected, abs=1e-6)
    assert found["map"] > truth[:, occurs].mean() * 2  # far from chance


def read_table_of(folder) -> dict[str, list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(folder, columns=["image_id", "labels"]).to_pydict()
    return dict(zip(table["image_id"], table["labels"], strict=True))
