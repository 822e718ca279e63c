import numpy as np
import pytest
from PIL import Image

from pipeline.distortions import OPERATIONS, erased, recoloured, rotated, trivially_changed

GREY = (124, 116, 104)


def picture(mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def fill_of(mode):
    return GREY if mode == "RGB" else (116,)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_every_operation_keeps_size_and_mode_at_both_ends(number, mode):
    change, (low, high), signed = OPERATIONS[number]
    for strength in (low, high, -high if signed else high):
        changed = change(picture(mode), strength, fill_of(mode))
        assert (changed.size, changed.mode) == ((32, 24), mode)


@pytest.mark.parametrize("number", range(len(OPERATIONS)))
def test_nothing_happens_at_no_strength_and_something_at_full(number):
    change, (low, high), _ = OPERATIONS[number]
    before = np.asarray(picture())
    always = number in (12, 13)  # autocontrast and equalize have no strength
    if not always:
        np.testing.assert_allclose(np.asarray(change(picture(), low, GREY), np.int64), before, atol=1)
    faint = Image.fromarray(before // 3 + 60)
    assert np.array_equal(np.asarray(change(faint, high, GREY)), np.asarray(faint)) is (number == 0)


def test_a_turn_by_ninety_degrees_is_a_transposition():
    square = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8))
    np.testing.assert_array_equal(np.asarray(rotated(square, 90, GREY)), np.rot90(np.asarray(square)))
    corner = np.asarray(rotated(square, 45, GREY))[0, 0]
    assert corner.tolist() == list(GREY)


def test_colours_change_within_the_strength():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    means = [np.asarray(recoloured(grey, 0.2, np.random.default_rng(n))).mean() for n in range(200)]
    assert min(means) >= 79
    assert max(means) <= 121
    assert max(means) - min(means) > 30
    np.testing.assert_array_equal(
        np.asarray(recoloured(picture(), 0.0, np.random.default_rng(0))), np.asarray(picture())
    )


def test_trivial_augment_draws_all_operations():
    random = np.random.default_rng(0)
    results = {np.asarray(trivially_changed(picture(), GREY, random)).tobytes() for _ in range(200)}
    assert len(results) > 100


def test_erasing_fills_a_box_of_the_right_size():
    white = np.full((100, 80, 3), 255, np.uint8)
    for seed in range(50):
        after = erased(white, GREY, np.random.default_rng(seed))
        box = (after != 255).any(axis=2)
        rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        assert 0.015 <= box.mean() <= 0.34
        assert box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert after[box].reshape(-1, 3).tolist()[0] == list(GREY)
    assert (white == 255).all(), "the picture itself is left alone"
