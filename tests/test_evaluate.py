import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judging import Workers, evaluate, judge_with
from sklearn import metrics

from pipeline.judgesettings import EvaluateSettings
from pipeline.settings import SplitSettings
from pipeline.splits import split_of


def written(night, version: str) -> dict:
    return json.loads(night.store.read(f"models/tiny/{version}/evaluation.json"))


def paths(workers: Workers) -> list[str]:
    return sorted(segment.path for shard in workers.shards for segment in shard.segments)


@pytest.fixture
def split_files(night):
    """Four files of four images, each with its own splits; one shard each: (night, config, version)."""
    splits = {
        "a.parquet": ["train"] * 4, "b.parquet": ["train", "train", "test", "train"], "c.parquet": ["validation"] * 4,
        "d.parquet": ["test"] * 4,
    }  # fmt: skip
    for number, (name, words) in enumerate(splits.items()):
        night.write(name, list(range(4 * number, 4 * number + 4)), split=words)
    config, version = night.config(input={"split_column": "split", "shard_images": 4}), night.seal()
    night.plan(config)
    return night, config, version


def test_evaluation_lies_beside_the_bundle_and_in_the_record(split_files, workers, capsys):
    night, config, version = split_files
    record = evaluate(night, config)
    found = written(night, version)
    assert {"split", "num_images", "top1", "top5", "loss"} <= found.keys()
    assert (found["split"], found["num_images"], found["top5"]) == ("test", 5, 1.0)
    assert (found["dataset"], found["version"], found["classes"]) == ("data", version, ["ant", "bee", "cat"])
    assert found["interval95"][0] <= found["top1"] <= found["interval95"][1]
    assert len(found["misclassified"]) == found["num_misclassified"] == 5 - round(5 * found["top1"])
    assert record["exit_code"] == 0
    assert record["evaluation"]["top1"] == found["top1"]
    assert record["model"] == f"tiny@{version}"
    assert "split test: top-1 " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "read", "num_images"),
    [
        ("test", ["b.parquet", "d.parquet"], 5),
        ("val", ["c.parquet"], 4),
        ("train", ["a.parquet", "b.parquet"], 7),
        ("val+train", ["a.parquet", "b.parquet", "c.parquet"], 11),
        ("validation+train", ["a.parquet", "b.parquet", "c.parquet"], 11),
    ],
)
def test_only_shards_with_rows_of_the_split_are_read(split_files, workers, split, read, num_images):
    night, config, version = split_files
    evaluate(night, config, split)
    assert paths(workers) == read
    said = "train+val" if "+" in split else split
    assert (written(night, version)["split"], written(night, version)["num_images"]) == (said, num_images)


def test_shards_of_one_file_are_told_apart(night, workers):
    night.write("a.parquet", list(range(12)), 4, split=["train"] * 8 + ["test"] * 4)
    config, version = night.config(input={"split_column": "split", "shard_images": 4}), night.seal()
    night.plan(config)
    evaluate(night, config, "test")
    assert [shard.segments[0].first_row for shard in workers.shards] == [8]
    assert written(night, version)["num_images"] == 4


def test_rows_without_a_split_make_a_shard_matter(night, workers):
    night.write("a.parquet", list(range(40)), split=["train"] * 20 + [None] * 20)
    night.write("b.parquet", list(range(40, 60)), split=["train"] * 20)
    config = night.config(input={"split_column": "split", "shard_images": 40}, split={"val": 0.4, "test": 0.4})
    version = night.seal()
    night.plan(config)
    evaluate(night, config)
    assert paths(workers) == ["a.parquet"]
    assert written(night, version)["split"] == "test"
    assert 0 < written(night, version)["num_images"] < 20


def test_hash_splits_need_every_shard(night, workers):
    night.write("a.parquet", list(range(30)), 10, group=[f"g{n % 10}" for n in range(30)])
    config = night.config(input={"group_column": "group", "shard_images": 10}, split={"val": 0.3, "test": 0.3})
    version = night.seal()
    night.plan(config)
    evaluate(night, config, "val")
    assert len(workers.shards) == 3
    expected = 3 * [split_of(f"g{n}", config.split) for n in range(10)].count("val")
    assert written(night, version)["num_images"] == expected > 0


def test_folders_name_the_shards_that_matter(night, workers):
    for number, path in enumerate(["train/ant/1.png", "train/bee/2.png", "val/bee/3.png", "val/cat/4.png"]):
        (night.data / path).parent.mkdir(parents=True, exist_ok=True)
        (night.data / path).write_bytes(night.png(number))
    source = {**dict.fromkeys(("image_column", "id_column", "label_column")), "shard_images": 1}
    config, version = night.config(input=source), night.seal()
    night.plan(config)
    evaluate(night, config)
    assert paths(workers) == ["val/bee/3.png", "val/cat/4.png"]
    assert (written(night, version)["split"], written(night, version)["num_images"]) == ("val", 2)


def test_failed_shards_leave_the_last_evaluation_as_it_was(split_files, workers, capsys):
    night, config, version = split_files
    evaluate(night, config, "val")
    before = written(night, version)
    workers.gives_up = {"d.parquet"}
    record = evaluate(night, config)
    assert record["exit_code"] == 3
    assert (record["failed_shards"], record["failures"][0]["error"]) == (1, "TransientError: 503")
    assert "evaluation" not in record
    assert written(night, version) == before
    assert not list(night.store.list("looks"))  # nothing was seen
    said = capsys.readouterr().err
    assert "1 of 2 shards could not be judged, so evaluation.json stays as it was" in said
    assert "TransientError: 503" in said


@pytest.mark.parametrize(
    ("splits", "shares", "chosen"),
    [
        (["train", "test", "val"], {}, "test"),
        (["train", "val", "val"], {}, "val"),
        (["train", "validation", None], {}, "val"),
        (None, {"test": 0.5, "val": 0.1}, "test"),
        (None, {"test": 0, "val": 0.5}, "val"),
    ],
)
def test_default_split_is_test_else_val(night, workers, splits, shares, chosen):
    columns = {"split": splits * 10} if splits else {}
    night.write("a.parquet", list(range(30)), **columns)
    config = night.config(input={"split_column": "split" if splits else None}, split=shares)
    version = night.seal()
    night.plan(config)
    evaluate(night, config)
    assert written(night, version)["split"] == chosen


@pytest.mark.parametrize(
    ("source", "columns", "split", "words"),
    [
        ({"split_column": "split"}, {"split": ["train"] * 4}, None, "no split test or val to judge on, only train"),
        ({"split_column": "split"}, {"split": ["val"] * 4}, "tets", "no labelled image belongs to the split tets; there are: val"),
        ({"split_column": "split", "label_column": None}, {"split": ["test"] * 4}, None, "evaluation needs labels"),
        ({"split_column": "split"}, {"split": ["test"] * 4, "label": ["yak"] * 4}, None, "none of the labels in label (yak"),
        ({"split_column": "split"}, {"split": ["test"] * 4, "label": pa.nulls(4, pa.string())}, None, "no labelled image belongs"),
    ],
)  # fmt: skip
def test_nothing_to_judge_is_said(night, workers, capsys, source, columns, split, words):
    night.write("a.parquet", list(range(4)), **columns)
    config, version = night.config(input=source), night.seal()
    night.plan(config)
    assert evaluate(night, config, split)["exit_code"] == 2
    assert words in capsys.readouterr().err
    assert f"models/tiny/{version}/evaluation.json" not in [entry.path for entry in night.store.list("models")]


def test_unknown_labels_and_bad_images_are_said(night, workers, capsys):
    images = pa.array([night.png(1), night.png(2), b"bad"], pa.binary())
    night.write("a.parquet", [1, 2, 3], image=images, label=["ant", "yak", "bee"], split=["test"] * 3)
    config, version = night.config(input={"split_column": "split"}), night.seal()
    night.plan(config)
    evaluate(night, config)
    assert (written(night, version)["num_images"], written(night, version)["quarantined"]) == (1, 1)
    said = capsys.readouterr().err
    assert "1 image of the split cannot be read" in said
    assert "1 image of the split not judged: the model does not know the label" in said


def test_rows_that_the_filter_leaves_out_are_not_judged(night, workers):
    for day in (1, 2):
        (night.data / f"day={day}").mkdir(parents=True)
        night.write(f"day={day}/a.parquet", range(day * 10, day * 10 + 10), split=["test"] * 10, price=range(10))
    filtered = {"filter": [("day", "=", "1"), ("price", "<", 7)], "split_column": "split"}
    config, version = night.config(input=filtered), night.seal()
    night.plan(night.config(input={"split_column": "split"}))
    assert evaluate(night, config)["exit_code"] == 0
    assert written(night, version)["num_images"] == 7
    assert paths(workers) == ["day=1/a.parquet"]


def test_a_version_looks_at_a_test_set_once(split_files, workers, capsys):
    night, config, version = split_files
    evaluate(night, config)
    first, judged = written(night, version), len(workers.shards)
    evaluate(night, config, "val")  # as often as one likes, and the page shows it
    evaluate(night, config, "val")
    assert written(night, version)["split"] == "val"
    assert len(workers.shards) == judged + 2
    capsys.readouterr()
    record = evaluate(night, config)
    assert len(workers.shards) == judged + 2
    assert written(night, version) == first
    assert record["evaluation"]["top1"] == first["top1"]
    assert (
        f"tiny@{version} has had its one look at this test set, on {first['evaluated_at']}" in capsys.readouterr().err
    )
    assert evaluate(night, config, "val+test")["exit_code"] == 2
    assert "--split val+test: the test set is judged by itself" in capsys.readouterr().err


def test_looks_at_a_test_set_are_counted_over_versions(split_files, workers, capsys):
    night, config, version = split_files
    others = [night.seal(seed=seed) for seed in (1, 2)]
    found = [judge_with(night, config, v)["evaluation"]["looks"] for v in (version, *others, version)]
    assert found == [1, 2, 3, 3]  # the first one's figures stand among those of three by now
    assert "look 3 at this test set: of so many equally good models the best would seem" in capsys.readouterr().err
    night.write("e.parquet", [90, 91], split=["test"] * 2)  # another test set
    night.plan(config)
    assert judge_with(night, config, version)["evaluation"]["looks"] == 1


def test_new_images_of_other_splits_leave_the_test_set_as_it_is(split_files, workers):
    night, config, _ = split_files
    evaluate(night, config)
    judged = len(workers.shards)
    night.write("e.parquet", [90, 91], split=["train"] * 2)
    night.plan(config)
    evaluate(night, config)
    assert len(workers.shards) == judged


def test_a_look_whose_figures_were_removed_is_made_again(split_files, workers):
    night, config, version = split_files
    evaluate(night, config)
    first = written(night, version)
    night.store.delete(f"{first['rows'].removesuffix('.parquet')}.json")
    evaluate(night, config)
    assert (written(night, version)["top1"], written(night, version)["looks"]) == (first["top1"], 1)
    assert len(list(night.store.list("looks"))) == 1


def test_the_rows_tell_everything_again(split_files, workers):
    night, config, version = split_files
    evaluate(
        night,
        config.model_copy(
            update={
                "input": config.input.model_copy(update={"split_column": None}),
                "split": SplitSettings(val=0, test=0),
            }
        ),
        "train",
    )
    found = written(night, version)
    rows = pq.read_table(f"{night.store.url}/{found['rows']}").to_pandas()
    assert len(rows) == 16
    assert found["top1"] == metrics.accuracy_score(rows.label, rows.predicted) == (rows.errors == 0).mean()
    assert found["loss"] == pytest.approx(-np.log(rows.probability).mean())
    assert found["top5"] == (rows["rank"] < 5).mean()
    confusion = metrics.confusion_matrix(rows.class_index, rows.predicted_index)
    assert {(t, g): n for t, g, n in found["confusion"]} == {(t, g): n for (t, g), n in np.ndenumerate(confusion) if n}
    worst = max((n, -t, -g) for (t, g), n in np.ndenumerate(confusion) if t != g)
    first = found["confused"][0]
    assert (first["num_images"], first["label"]) == (worst[0], found["classes"][-worst[1]])
    assert first["share"] == worst[0] / (rows.class_index == -worst[1]).sum()
    right, bins = rows.errors == 0, np.ceil(rows.confidence * 15)
    apart = [len(part) * abs(right[part.index].mean() - part.confidence.mean()) for _, part in rows.groupby(bins)]
    assert found["calibration"]["ece"] == pytest.approx(sum(apart) / len(rows))
    for point in found["coverage"]:
        above = rows.confidence > point["confidence"]
        assert (point["coverage"], point["accuracy"]) == (above.mean(), right[above].mean())
    for row in found["per_class"]:
        mine, said = rows.class_index == row["class_index"], rows.predicted_index == row["class_index"]
        assert row["recall"] == ((mine & right).sum() / mine.sum() if mine.any() else None)
        assert row["precision"] == ((said & right).sum() / said.sum() if said.any() else None)
    assert rows.sort_values(["segment", "position"]).index.tolist() == list(range(16))


def test_slices_are_read_from_the_input(night, workers, capsys):
    lights = ["day"] * 30 + ["night"] * 10
    night.write("a.parquet", range(40), split=["test"] * 40, light=lights, lux=[float(n) for n in range(40)])
    config = night.config(input={"split_column": "split"}, evaluate={"slices": ["light", "lux"]})
    version = night.seal()
    night.plan(config)
    evaluate(night, config)
    found = written(night, version)
    assert [(row["column"], row["value"], row["num_images"]) for row in found["slices"]] == [
        ("light", "day", 30), ("light", "night", 10),
        ("lux", "below 9.75", 10), ("lux", "9.75 to 19.5", 10), ("lux", "19.5 to 29.25", 10), ("lux", "29.25 and more", 10),
    ]  # fmt: skip
    assert sum(row["right"] for row in found["slices"][:2]) == round(found["top1"] * 40)
    rows = pq.read_table(f"{night.store.url}/{found['rows']}")
    assert rows["light"].to_pylist() == lights
    capsys.readouterr()
    evaluate(night, night.config(input={"split_column": "split"}, evaluate={"slices": ["split"]}))
    assert "warning: that look was without evaluate.slices split" in capsys.readouterr().err


def test_the_rows_of_several_labels_tell_everything_again(night, workers):
    sets = [
        (["ant"], None),
        (["bee", "yak"], ["cat"]),
        ([], None),
        (["ant", "cat"], ["cat"]),
        (["cat"], []),
        (["bee"], None),
    ] * 3
    night.write(
        "a.parquet",
        range(18),
        labels=[there for there, _ in sets],
        absent=[absent for _, absent in sets],
        split=["val"] * 18,
    )
    config = night.config(
        input={"split_column": "split", "label_column": None, "labels_column": "labels", "absent_column": "absent"}
    )
    version = night.seal(thresholds=(0.4, 0.5, 0.3))
    night.plan(config)
    evaluate(night, config)
    found = written(night, version)
    rows = pq.read_table(f"{night.store.url}/{found['rows']}").to_pylist()
    names = found["classes"]

    def truth(row, name):
        if name in row["labels"]:
            return 1
        return 0 if row["absent"] is None or name in row["absent"] else -1

    known = np.array([[truth(row, name) for name in names] for row in rows])
    scores = np.array([row["probabilities"] for row in rows])
    said = np.array([[name in row["predicted"] for name in names] for row in rows])
    each = [metrics.average_precision_score(k[k >= 0], s[k >= 0]) for k, s in zip(known.T, scores.T, strict=True)]
    assert found["map"] == pytest.approx(np.mean(each))
    judged = known >= 0
    assert found["micro"]["f1"] == pytest.approx(metrics.f1_score(known[judged], said[judged]))
    assert found["exact"] == np.mean([row["errors"] == 0 for row in rows])
    assert [row["unknown"] for row in rows] == [
        int("bee" in row["labels"] and row["absent"] is not None) for row in rows
    ]
    picked = judged & said
    sure, right = scores[picked], known[picked] == 1
    apart = [
        (bins == b).sum() * abs(right[bins == b].mean() - sure[bins == b].mean())
        for bins in [np.ceil(sure * 15)]
        for b in np.unique(bins)
    ]
    assert found["calibration"]["ece"] == pytest.approx(sum(apart) / picked.sum(), abs=1e-6)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([[1]] * 4), "has type list<element: int64>; expected one value per image"),
        (pa.array([{"a": 1}] * 4), "expected one value per image"),
    ],
)
def test_a_column_that_is_no_single_value_is_refused(night, workers, capsys, values, words):
    night.write("a.parquet", range(4), odd=values, split=["val"] * 4)
    config = night.config(input={"split_column": "split"}, evaluate={"slices": ["odd"]})
    night.seal()
    night.plan(config)
    assert evaluate(night, config)["exit_code"] == 2
    assert words in capsys.readouterr().err


def test_a_column_of_other_types_in_other_files_is_text(night, workers):
    night.write("a.parquet", range(3), camera=[1, 2, 2], split=["val"] * 3)
    night.write("b.parquet", range(3, 6), camera=["x", "1", "x"], split=["val"] * 3)
    config = night.config(input={"split_column": "split", "shard_images": 3}, evaluate={"slices": ["camera"]})
    version = night.seal()
    night.plan(config)
    evaluate(night, config)
    assert [(r["value"], r["num_images"]) for r in written(night, version)["slices"]] == [("1", 2), ("2", 2), ("x", 2)]


def test_partitions_are_slices_too(night, workers):
    for day in (1, 2):
        (night.data / f"day={day}").mkdir(parents=True)
        night.write(f"day={day}/a.parquet", range(day * 10, day * 10 + 5 * day), split=["test"] * 5 * day)
    config, version = night.config(input={"split_column": "split"}, evaluate={"slices": ["day"]}), night.seal()
    night.plan(config)
    evaluate(night, config)
    assert [(row["value"], row["num_images"]) for row in written(night, version)["slices"]] == [("1", 5), ("2", 10)]


def test_a_slice_that_is_no_column_is_refused(split_files, workers, capsys):
    night, config, _ = split_files
    config = config.model_copy(update={"evaluate": EvaluateSettings(slices=("spilt",))})
    assert evaluate(night, config)["exit_code"] == 2
    assert "no column 'spilt' (evaluate.slices); did you mean 'split'" in capsys.readouterr().err


def test_folders_of_images_have_no_columns_to_slice_by(night, workers, capsys):
    (night.data / "test/ant").mkdir(parents=True)
    (night.data / "test/ant/1.png").write_bytes(night.png(1))
    source = dict.fromkeys(("image_column", "id_column", "label_column"))
    config = night.config(input=source, evaluate={"slices": ["light"]})
    night.seal()
    night.plan(config)
    assert evaluate(night, config)["exit_code"] == 2
    assert "evaluate.slices names a column ('light')" in capsys.readouterr().err
