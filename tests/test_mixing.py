import pytest
import torch

from pipeline.augmentsettings import AugmentSettings
from pipeline.mixing import mixed

LANES = [(0, 3), (1, 3), (2, 4), (3, 2)]


def batch():
    """Pictures of one grey each, 10 x their number, of the class that is their number."""
    pictures = torch.stack([torch.full((8, 8, 3), 10 * n, dtype=torch.uint8) for n in range(12)])
    return pictures, torch.arange(12)


def mix(settings, lanes=LANES, part=slice(None), step=0, epoch=0, seed=1):
    inputs, classes = batch()
    return mixed(inputs[part].clone(), classes[part].clone(), lanes, AugmentSettings(**settings), seed, epoch, step)


@pytest.mark.parametrize("settings", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_a_picture_holds_the_shares_of_its_two_classes(settings):
    for step in range(20):
        inputs, targets = mix(settings, step=step)
        for picture, one, other, share in zip(inputs, targets.classes, targets.others, targets.shares, strict=True):
            assert 0.5 <= share <= 1
            assert picture.float().mean().item() == pytest.approx(
                10 * (share * one + (1 - share) * other).item(), abs=0.51
            )


def test_partners_are_others_of_the_same_lane():
    _, targets = mix({"mixup": 1.0})
    first = 0
    for _, length in LANES:
        for place in range(first, first + length):
            pair = {int(targets.classes[place]), int(targets.others[place])}
            assert place in pair
            assert len(pair) == 2
            assert pair <= set(range(first, first + length))
        first += length


def test_every_lane_has_a_share_of_its_own():
    _, targets = mix({"mixup": 1.0})
    assert len(targets.shares.unique()) == len(LANES)


def test_two_workers_mix_as_one():
    whole, targets = mix({"mixup": 0.4, "cutmix": 1.0})
    parts = (slice(0, 2), slice(0, 6)), (slice(2, 4), slice(6, 12))
    halves = [mix({"mixup": 0.4, "cutmix": 1.0}, LANES[lanes], rows) for lanes, rows in parts]
    assert torch.equal(torch.cat([inputs for inputs, _ in halves]), whole)
    for name in ("classes", "others", "shares"):
        assert torch.equal(torch.cat([getattr(half, name) for _, half in halves]), getattr(targets, name))


def test_chance_depends_on_seed_epoch_and_step():
    first = mix({"mixup": 0.4})[0]
    assert torch.equal(mix({"mixup": 0.4})[0], first)
    for other in ({"seed": 2}, {"epoch": 1}, {"step": 1}):
        assert not torch.equal(mix({"mixup": 0.4}, **other)[0], first)


def test_a_coin_decides_where_both_are_asked_for():
    def is_cut(picture):
        return len(picture.unique()) == 2

    kinds = {is_cut(mix({"mixup": 0.4, "cutmix": 1.0}, step=step)[0][0]) for step in range(20)}
    assert kinds == {True, False}


def test_a_lane_with_one_picture_or_none_keeps_it():
    inputs, targets = mix({"mixup": 1.0}, [(0, 1), (1, 0), (2, 1)], slice(0, 2))
    assert torch.equal(inputs, batch()[0][:2])
    assert targets.classes.tolist() == targets.others.tolist() == [0, 1]


@pytest.mark.parametrize("step", range(5))
def test_multi_label_pictures_are_mixed_as_others(step):
    inputs, classes = batch()
    rows = torch.nn.functional.one_hot(classes).to(torch.int8)
    settings = AugmentSettings(mixup=0.4)
    expected = mixed(inputs.clone(), classes, LANES, settings, 1, 0, step)
    pictures, targets = mixed(inputs, rows, LANES, settings, 1, 0, step)
    assert torch.equal(pictures, expected[0])
    assert torch.equal(targets.classes.argmax(1), expected[1].classes)
    assert torch.equal(targets.others.argmax(1), expected[1].others)
    assert torch.equal(targets.shares, expected[1].shares)
