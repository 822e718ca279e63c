import pytest
from pydantic import ValidationError

from pipeline.trainsettings import TrainSettings
from pipeline.tunesettings import Range, TuneSettings, on_the_border, with_values


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"label.top_k": [1]}, "expected a key of train, such as train.learning_rate"),
        ({"train.learning_rat": [1]}, "expected a key of train"),
        ({"train.workers": [1, 2]}, "cannot be tuned"),
        ({"train.mode": ["head"]}, "cannot be tuned"),
        ({"train.epochs": [3]}, "cannot be tuned"),
        ({"train.optimizer": []}, "give values to choose from"),
        ({"train.learning_rate": {"min": 1, "max": 0.1}}, "min (1) must be below max (0.1)"),
        ({"train.learning_rate": {"min": 0, "max": 0.1, "log": True}}, "log: true needs a min above 0"),
        ({"train.batch_size": {"min": 1.5, "max": 8, "whole": True}}, "whole numbers as min (1.5)"),
    ],
)
def test_a_space_that_cannot_be_is_refused(space, words):
    with pytest.raises(ValidationError) as error:
        TuneSettings(space=space)
    assert words in str(error.value)


def test_values_go_where_their_keys_say():
    settings = TrainSettings(mode="scratch", learning_rate=0.5)
    found = with_values(settings, {"train.learning_rate": 0.25, "train.augment.mixup": 0.2})
    assert (found.learning_rate, found.augment.mixup, found.mode) == (0.25, 0.2, "scratch")
    assert settings.learning_rate == 0.5
    with pytest.raises(ValidationError, match="greater than 0"):
        with_values(settings, {"train.learning_rate": 0})


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert TuneSettings(space={"train.learning_rate": ["1e-3", 0.1]}).space["train.learning_rate"] == (0.001, 0.1)
    assert TuneSettings(space={"train.optimizer": ["adam", "sgd"]}).space["train.optimizer"] == ("adam", "sgd")


def test_sections_that_are_not_there_are_named():
    for key in ("train.learning_rate.foo", "train.augment.foo.bar"):
        with pytest.raises(ValueError, match=r"train has no section|Extra inputs"):
            with_values(TrainSettings(), {key: 1})


def test_values_of_a_preset_are_replaced():
    assert with_values(TrainSettings(preset="finetune"), {"train.schedule": "constant"}).schedule == "constant"


@pytest.mark.parametrize(
    ("domain", "value", "end"),
    [
        (Range(min=1e-4, max=1e-1, log=True), 9.5e-2, "upper"),
        (Range(min=1e-4, max=1e-1, log=True), 1.1e-4, "lower"),
        (Range(min=1e-4, max=1e-1, log=True), 5e-2, None),
        (Range(min=0, max=1), 0.5, None),
        (Range(min=0, max=1), 0.97, "upper"),
        ((16, 32, 64), 64, "upper"),
        ((16, 32, 64), 32, None),
        ((16, 64), 64, None),  # of two each is an end
        (("adam", "sgd", "adamw"), "adamw", None),
        ((None, 0.1, 0.2, 0.3), None, None),
        ((True, False), True, None),
    ],
)
def test_values_at_an_end_are_named(domain, value, end):
    assert on_the_border({"train.x": domain}, {"train.x": value}) == ({"train.x": end} if end else {})
