import pickle

import pyarrow as pa
import pytest

from pipeline.errors import ModelError
from pipeline.evaluation import Judge
from pipeline.metrics import Sums, summarize
from pipeline.splits import split_of
from pipeline.tables import read_table
from pipeline.tasks import EvaluateTask


def judge(night, config, version, *splits: str) -> Sums:
    task = EvaluateTask(
        config.store, config.storage, config.input, config.split, config.label, "tiny", version, splits, 2
    )
    one, total = Judge(task), Sums()
    for shard in night.plan(config).shards:
        total += pickle.loads(pickle.dumps(one(shard)))  # as it comes back from a worker
    return total


def labels_of(night, config, version) -> dict[object, dict]:
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    return {row["image_id"]: row for e in ledger.values() for row in read_table(night.store, e.labels.path).to_pylist()}


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_counts_the_predictions_that_labelling_writes(night, batch_size):
    truth = [("ant", "bee", "cat")[n % 3] for n in range(40)]
    night.write("a.parquet", list(range(40)), label=truth, split=["test"] * 40)
    config = night.config(input={"split_column": "split", "shard_images": 16}, label={"batch_size": batch_size})
    version = night.seal()
    written = labels_of(night, config, version)
    sums = judge(night, config, version, "test")
    wrong = {n for n in range(40) if written[n]["label"] != truth[n]}
    assert sums.num_images == 40
    assert sums.top1 == 40 - len(wrong)
    assert sums.top5 == 40
    assert {row["image_id"] for row in sums.misclassified} == wrong
    for row in sums.misclassified:
        assert (row["label"], row["predicted"]) == (truth[row["image_id"]], written[row["image_id"]]["label"])
        assert row["confidence"] == pytest.approx(written[row["image_id"]]["confidence"], abs=1e-6)
        assert row["uri"] == written[row["image_id"]]["uri"]
    guessed = {k: sum(n for (_, guess), n in sums.pairs.items() if guess == k) for k in range(3)}
    assert guessed == {k: sum(row["class_index"] == k for row in written.values()) for k in range(3)}


def test_figures_are_the_same_for_any_batch_size_and_number_of_shards(night):
    night.write("a.parquet", list(range(50)), 5, split=["val"] * 50)
    version, found = night.seal("lab_cnn"), []
    for batch_size, shard_images in ((64, 512), (7, 10), (1, 5)):
        source = {"split_column": "split", "shard_images": shard_images, "name": f"cut-{shard_images}"}
        config = night.config(input=source, label={"batch_size": batch_size})
        found.append(summarize(judge(night, config, version, "val"), ["ant", "bee", "cat"]))
    for other in found[1:]:
        assert other["loss"] == pytest.approx(found[0]["loss"], abs=1e-6)
        assert [row["image_id"] for row in other["misclassified"]] == [r["image_id"] for r in found[0]["misclassified"]]
        exact = ("num_images", "top1", "top5", "confusion", "per_class", "interval95")
        assert {key: other[key] for key in exact} == {key: found[0][key] for key in exact}


def test_unknown_labels_are_counted_and_not_judged(night):
    labels = ["ant", "yak", "bee", "yak", "zebra", None]
    night.write("a.parquet", list(range(6)), label=labels, split=["test"] * 6)
    sums = judge(night, night.config(input={"split_column": "split"}), night.seal(), "test")
    assert sums.num_images == 2
    assert sums.unknown_labels == {"yak": 2, "zebra": 1}
    assert sum(sums.pairs.values()) == 2


def test_model_that_answers_no_numbers_is_never_counted_as_right(night):
    night.write("a.parquet", list(range(4)), split=["test"] * 4)
    version = night.seal(change=lambda net: net.fc.bias.data.fill_(float("nan")))
    with pytest.raises(ModelError, match=f"tiny@{version}"):
        judge(night, night.config(input={"split_column": "split"}), version, "test")


def test_bad_images_of_the_split_are_counted(night):
    images = pa.array([night.png(1), b"bad", None, b"bad"], pa.binary())
    night.write("a.parquet", [0, 1, 2, 3], image=images, label=["ant"] * 4, split=["test", "test", "test", "train"])
    sums = judge(night, night.config(input={"split_column": "split"}), night.seal(), "test")
    assert (sums.num_images, sums.quarantined) == (1, 2)


def test_split_column_decides_and_rows_without_a_value_are_hashed(night):
    given = ["train", "validation", "test", None] * 15
    night.write("a.parquet", list(range(60)), split=given)
    config = night.config(input={"split_column": "split"}, split={"val": 0.3, "test": 0.3})
    version = night.seal()
    hashes = {key: row["content_hash"] for key, row in labels_of(night, config, version).items()}
    sides = [
        {"validation": "val"}.get(word, word) if word else split_of(hashes[n], config.split)
        for n, word in enumerate(given)
    ]
    counts = {side: judge(night, config, version, side).num_images for side in ("train", "val", "test")}
    assert counts == {side: sides.count(side) for side in ("train", "val", "test")}
    assert judge(night, config, version, "val", "test").num_images == counts["val"] + counts["test"]
    assert sum(counts.values()) == 60
    assert counts["test"] > 15  # some of the hashed ones too


def test_group_decides_the_hash_split_where_there_is_one(night):
    groups = [f"camera-{n % 6}" for n in range(30)]
    night.write("a.parquet", list(range(30)), group=groups)
    config = night.config(input={"group_column": "group"}, split={"val": 0.3, "test": 0.3})
    expected = [split_of(group, config.split) for group in groups]
    for side in set(expected):
        assert judge(night, config, night.seal(), side).num_images == expected.count(side)


def test_folders_name_splits_and_classes(night):
    for path, seed in {"train/ant/1.png": 1, "valid/bee/2.png": 2, "test/cat/3.png": 3, "test/ant/4.png": 4}.items():
        (night.data / path).parent.mkdir(parents=True, exist_ok=True)
        (night.data / path).write_bytes(night.png(seed))
    columns = dict.fromkeys(("image_column", "id_column", "label_column"))
    config = night.config(input=columns)
    version = night.seal()
    assert [judge(night, config, version, side).num_images for side in ("train", "val", "test")] == [1, 1, 2]
    assert {truth for truth, _ in judge(night, config, version, "test").pairs} == {0, 2}
