import numpy as np
import pytest

from pipeline.looks import count_looks, luck_of_best, read_look, record_look, rows_digest
from pipeline.settings import InputSettings, SplitSettings, StorageSettings
from pipeline.shards import Segment, Shard
from pipeline.storage import open_storage

SOURCE, SPLIT = InputSettings(url="/images", image_column="image", label_column="label"), SplitSettings()
SHARDS = [Shard((Segment(name, 10, "v1", 0, 4, 4),)) for name in "abc"]


def name(shards=SHARDS, source=None, split=None, splits=("test",)):
    return rows_digest(shards, SOURCE.model_copy(update=source or {}), SPLIT.model_copy(update=split or {}), splits)


def test_a_test_set_is_told_by_its_rows_and_their_truth():
    assert name() == name(list(reversed(SHARDS))) == name(source={"url": "/moved", "shard_images": 3, "max_pixels": 9})
    assert name() == name(split={"val": 0.3})  # test images do not move with the share of val
    others = [
        name(SHARDS[:2]), name(source={"label_column": "other"}), name(source={"filter": (("a", "=", 1),)}),
        name(split={"test": 0.2}), name(splits=("val",)),
        name([Shard(SHARDS[0].segments, frozenset({SHARDS[0].segments[0].key})), *SHARDS[1:]]),
    ]  # fmt: skip
    assert len({name(), *others}) == 7
    assert name(splits=("val",)) != name(splits=("val",), split={"val": 0.3})
    # Where the input names every row's split no share plays a part.
    assert rows_digest(SHARDS, SOURCE, None, ("test",)) != name()


def test_a_look_is_recorded_once_and_counted(tmp_path):
    store = open_storage(str(tmp_path), StorageSettings())
    assert read_look(store, "d", "t", "m@1") is None
    record_look(store, "d", "t", "m@1", {"at": "first"})
    record_look(store, "d", "t", "m@1", {"at": "second"})
    assert read_look(store, "d", "t", "m@1") == {"at": "first"}
    record_look(store, "d", "t", "m@2", {"at": "x"})
    record_look(store, "d", "other", "m@3", {"at": "x"})
    assert (count_looks(store, "d", "t"), count_looks(store, "d", "other"), count_looks(store, "d", "none")) == (
        2,
        1,
        0,
    )


@pytest.mark.parametrize("looks", [2, 5, 20])
def test_the_luck_of_the_best_is_what_drawing_gives(looks):
    best = np.random.default_rng(0).binomial(400, 0.8, (20_000, looks)).max(axis=1) / 400
    assert luck_of_best(looks, 0.8, 400) == pytest.approx(best.mean() - 0.8, abs=0.002)
    assert luck_of_best(1, 0.8, 400) == 0
