import pytest
from pydantic import ValidationError

from pipeline.presets import PRESETS
from pipeline.trainsettings import TrainSettings


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_recipe(name):
    settings = TrainSettings(preset=name)
    told = settings.model_dump(mode="json")
    for key, value in PRESETS[name].items():
        found = {k: v for k, v in told[key].items() if k in value} if isinstance(value, dict) else told[key]
        assert found == value


def test_values_of_ones_own_win_also_below_augment():
    settings = TrainSettings(preset="imagenet", epochs=3, augment={"flip": "none", "mixup": 0})
    assert (settings.epochs, settings.learning_rate) == (3, 0.125)
    assert (settings.augment.flip, settings.augment.mixup, settings.augment.cutmix) == ("none", 0, 1.0)
    assert settings.augment.crop_area == (0.08, 1.0)


def test_an_unknown_preset_names_those_that_there_are():
    with pytest.raises(ValidationError, match="no preset 'imagnet'; there are lab, transfer, finetune, imagenet"):
        TrainSettings(preset="imagnet")


def test_a_config_that_is_written_out_again_says_the_same():
    for name in PRESETS:
        settings = TrainSettings(preset=name, epochs=7)
        assert TrainSettings.model_validate(settings.model_dump()) == settings
