import pickle

import pytest
from pydantic import ValidationError

from pipeline.settings import (
    InputSettings,
    LabelSettings,
    ModelSettings,
    SplitSettings,
    StorageSettings,
    TransformSettings,
)
from pipeline.trainsettings import TrainSettings, Workers


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (StorageSettings, {"endpoint": "127.0.0.1:9000"}, "expected http://host:port"),  # object_store would panic
        (StorageSettings, {"timeout_s": 0}, "greater than 0"),
        (StorageSettings, {"timeout_s": float("inf")}, "finite"),
        (StorageSettings, {"max_retries": -1}, "greater than or equal to 0"),
        (InputSettings, {"url": "x", "image_column": "a", "uri_column": "b"}, "not both"),
        (InputSettings, {"url": "x", "shard_images": 0}, "greater than 0"),
        (InputSettings, {"url": "x", "format": "avi"}, "'auto', 'parquet', 'csv' or 'images'"),
        (InputSettings, {"url": "x", "name": "a/b"}, "name of one folder"),
        (InputSettings, {"url": "x", "name": ".."}, "name of one folder"),
        (InputSettings, {"url": "x", "name": " "}, "name of one folder"),
        (LabelSettings, {"exact": True, "engine": "openvino"}, "exact means torch and fp32"),
        (LabelSettings, {"exact": True, "precision": "bf16"}, "exact means torch and fp32"),
        (SplitSettings, {"val": 0.5, "test": 0.5}, "leave something to train on"),
        (SplitSettings, {"val": -0.1}, "greater than or equal to 0"),
        (SplitSettings, {"val": float("nan")}, "finite"),
        (TransformSettings, {"mean": []}, "at least 1 item"),
        (TransformSettings, {"std": [1, 1, 1, 1]}, "at most 3 items"),
        (ModelSettings, {"name": "../x"}, "match pattern"),
        (ModelSettings, {"name": ""}, "match pattern"),
        (TrainSettings, {"workers": 3}, "must divide lanes"),
        (TrainSettings, {"workers": 4, "batch_size": 3}, "at least workers"),
        (TrainSettings, {"epochs": 0}, "greater than 0"),
        (TrainSettings, {"workers": 0}, "greater than 0"),
        (TrainSettings, {"workers": "many"}, "valid integer"),
        (TrainSettings, {"workers": {"min": 3, "max": 2}}, r"min \(3\) must be at most max \(2\)"),
        (TrainSettings, {"workers": {"min": 3, "max": 3}}, "as 1, 2, 4, 8 do"),
        (TrainSettings, {"workers": {"most": 3}}, "Extra inputs"),
        (TrainSettings, {"workers": {"min": 5, "max": 7}}, r"workers \(5 to 7\) must divide lanes \(8\)"),
        (LabelSettings, {"max_bad_fraction": 1.1}, "less than or equal to 1"),
        (LabelSettings, {"attempts": 0}, "greater than 0"),
        (LabelSettings, {"deadline": "25:00"}, "a duration above zero"),
        (LabelSettings, {"min_workers": 3, "max_workers": 2}, "must be at most max_workers"),
        (InputSettings, {"url": "x", "filter": ["price", ">", 3]}, r"expected predicates as .*, not 'price'"),
        (InputSettings, {"url": "x", "filter": [["price", ">"]]}, r"expected predicates as .*, not \['price', '>'\]"),
        (InputSettings, {"url": "x", "filter": [["price", "in", 3]]}, "in takes a list of values, not empty"),
        (InputSettings, {"url": "x", "filter": [["price", ">", [3]]]}, "> takes one value"),
    ],
)
def test_values_that_make_no_sense_are_refused(section, values, words):
    with pytest.raises(ValidationError, match=words):
        section(**values)


def test_sections_are_closed_frozen_hashable_and_travel_to_workers():
    with pytest.raises(ValidationError, match="Extra inputs"):
        LabelSettings(topk=3)
    section = StorageSettings(region="eu-central-1")
    with pytest.raises(ValidationError, match="frozen"):
        section.region = "x"
    assert hash(section) == hash(StorageSettings(region="eu-central-1"))  # open_storage keeps a client per section
    assert pickle.loads(pickle.dumps(section)) == section


def test_edges_that_make_sense_are_accepted():
    assert SplitSettings(val=0, test=0).val == 0
    assert TrainSettings(workers=8, lanes=8, batch_size=8).workers == Workers(min=8, max=8)
    assert TrainSettings(workers="2").workers == Workers(min=2, max=2)
    assert TrainSettings(workers={"max": 4}).workers == Workers(min=1, max=4)
    assert StorageSettings(endpoint="http://127.0.0.1:9000", max_retries=0).max_retries == 0
    assert InputSettings(url="x", name="incoming photos").name == "incoming photos"
    assert LabelSettings(max_bad_fraction=0).max_bad_fraction == 0


@pytest.mark.parametrize(
    ("least", "most", "lanes", "room", "chosen"),
    [
        (1, 4, 8, 9, 4), (1, 4, 8, 4, 4), (1, 4, 8, 3, 2), (1, 4, 8, 1, 1), (1, 4, 8, 0, None),
        (2, 8, 8, 7, 4), (2, 8, 8, 1, None), (3, 4, 8, 3, None), (2, 2, 8, 64, 2), (1, 6, 6, 5, 3),
    ],
)  # fmt: skip
def test_as_many_workers_as_fit_and_divide_the_lanes(least, most, lanes, room, chosen):
    assert Workers(min=least, max=most).choose(lanes, room) == chosen
