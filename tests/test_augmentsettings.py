import pytest
from pydantic import ValidationError

from pipeline.augmentsettings import AugmentSettings
from pipeline.trainsettings import TrainSettings


@pytest.mark.parametrize("area", [(0, 1), (0.5, 0.2), (0.5, 1.1), (-0.1, 1)])
def test_an_area_is_a_range_of_shares(area):
    with pytest.raises(ValidationError, match="0 < smallest <= largest <= 1"):
        AugmentSettings(crop_area=area)
    assert AugmentSettings(crop_area=(0.2, 0.2)).crop_area == (0.2, 0.2)


@pytest.mark.parametrize(
    ("settings", "changes", "mixes"),
    [
        ({}, False, False), ({"crop_area": (0.5, 1)}, True, False), ({"flip": "vertical"}, True, False),
        ({"rotate_degrees": 5}, True, False), ({"color": 0.1}, True, False), ({"trivial": True}, True, False),
        ({"erase": 0.1}, True, False), ({"mixup": 0.2}, False, True), ({"cutmix": 1.0}, False, True),
    ],
)  # fmt: skip
def test_what_happens_to_single_pictures_and_what_to_batches(settings, changes, mixes):
    augment = AugmentSettings(**settings)
    assert (augment.changes_pictures, augment.mixes) == (changes, mixes)


def test_cached_features_cannot_be_augmented():
    with pytest.raises(ValidationError, match="set cache_features: false"):
        TrainSettings(mode="head", augment={"flip": "horizontal"})
    assert TrainSettings(mode="head", augment={"flip": "horizontal"}, cache_features=False).augment.flip == "horizontal"
