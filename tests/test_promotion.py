import pyarrow as pa
import pytest

from pipeline.errors import HeldError, UsageError
from pipeline.judgesettings import PromoteSettings
from pipeline.promotion import Comparison, compare, objections, point_to, pointer, version_before
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

FIGURES = {"top1": 0.9, "num_images": 90, "unknown_labels": {}, "calibration": {"ece": 0.03}}
BETTER = Comparison(100, 20, 2)


@pytest.fixture
def store(tmp_path):
    return open_storage(str(tmp_path), StorageSettings())


def rows(*errors, segment="s"):
    return pa.table(
        {"segment": [segment] * len(errors), "position": range(len(errors)), "errors": pa.array(errors, pa.int32())}
    ).filter(pa.array([error is not None for error in errors]))


def test_models_are_compared_image_by_image():
    found = compare(rows(0, 0, 1, 2, 0), rows(0, 1, 0, 3, 1))
    assert (found.num_images, found.better, found.worse) == (5, 3, 1)
    assert found.p == pytest.approx(5 / 16)
    backwards = compare(rows(0, 1, 0, 3, 1), rows(0, 0, 1, 2, 0))
    assert (backwards.better, backwards.worse) == (1, 3)


def test_an_image_whose_label_one_model_does_not_know_is_its_mistake():
    found = compare(rows(0, 1, None, 0), rows(None, None, 0, 0))
    assert (found.num_images, found.better, found.worse) == (4, 2, 1)


def test_labels_that_a_multi_label_model_cannot_say_are_mistakes():
    mine, its = (
        rows(*errors).append_column("unknown", pa.array(unknown, pa.int32()))
        for errors, unknown in (((1, 0), (0, 0)), ((0, 0), (2, 0)))
    )
    found = compare(mine, its)
    assert (found.better, found.worse) == (1, 0)


@pytest.mark.parametrize(
    ("figures", "comparison", "wanted", "words"),
    [
        ({}, BETTER, {}, []),
        ({}, None, {}, []),
        ({}, BETTER, {"min_top1": 0.9}, []),
        ({}, BETTER, {"min_top1": 0.91}, ["top-1 is 90.0%, below promote.min_top1 (91.0%)"]),
        ({"map": 0.4}, BETTER, {"min_map": 0.5}, ["mean average precision is 40.0%, below promote.min_map"]),
        ({"map": None}, BETTER, {"min_map": 0.5}, ["mean average precision is undefined"]),
        ({"unknown_labels": {"yak": 10}}, BETTER, {"min_top1": 0.82}, ["top-1 is 81.0%, below"]),
        ({"unknown_labels": {"yak": 10}, "task": "multi_label"}, BETTER, {"min_top1": 0.82}, []),
        ({"calibration": {"ece": None}}, BETTER, {}, ["nothing is known of its confidence"]),
        ({"calibration": {"ece": 0.2}}, BETTER, {}, ["20.0% apart, more than promote.max_ece (10.0%)"]),
        ({"calibration": {"ece": 0.2}}, BETTER, {"max_ece": None}, []),
        ({}, Comparison(100, 8, 3), {}, ["better than production on 8 images and worse on 3, which chance alone"]),
        ({}, Comparison(100, 8, 3), {"max_p": 0.2}, []),
        ({}, Comparison(100, 3, 3), {"max_p": 1}, ["better than production on 3 images and worse on 3"]),
        ({}, Comparison(100, 0, 0), {"max_p": 1}, ["on 0 images and worse on 0"]),
        ({}, Comparison(9, 1, 4), {"min_top1": 0.95}, ["below promote.min_top1", "worse on 4"]),
    ],
)
def test_objections(figures, comparison, wanted, words):
    found = list(objections({**FIGURES, **figures}, comparison, PromoteSettings(**wanted)))
    assert len(found) == len(words)
    for objection, word in zip(found, words, strict=True):
        assert word in objection


def test_going_back_goes_on_from_where_it_went_to(store):
    for n, version in enumerate("ABC"):
        point_to(store, "m", {"version": version}, n)
    assert version_before(store, "m") == (2, "B")
    point_to(store, "m", {"version": "B", "restores": 2}, 3)
    assert version_before(store, "m") == (1, "A")
    point_to(store, "m", {"version": "A", "restores": 1}, 4)
    assert version_before(store, "m") is None
    point_to(store, "m", {"version": "D"}, 5)
    assert version_before(store, "m") == (1, "A")
    assert pointer(store, "m") == (6, {"version": "D", "n": 6})


def test_two_at_once_do_not_overwrite_each_other(store):
    point_to(store, "m", {"version": "A"}, 0)
    point_to(store, "m", {"version": "B"}, 1)
    with pytest.raises(HeldError, match="changed by another run"):
        point_to(store, "m", {"version": "C"}, 1)
    assert pointer(store, "m")[1]["version"] == "B"


def test_without_production_there_is_nothing_to_move(store):
    with pytest.raises(UsageError, match="no production version of model 'm'"):
        pointer(store, "m")
