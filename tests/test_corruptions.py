import colorsys
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.corruptions import CORRUPTIONS, SEVERITIES, by_name


def hsv(pixels):
    """Return hue, saturation and value of a picture, each from 0 to 1, as the standard library has them."""
    flat = [colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in pixels.reshape(-1, 3)]
    return np.array(flat).reshape(*pixels.shape).transpose(2, 0, 1)


@pytest.fixture
def picture():
    """A picture of 64 x 64 with edges, colours and black."""
    y, x = np.mgrid[0:64, 0:64]
    values = np.stack([x * 4, y * 4, np.where((x // 7 + y // 11) % 2, 220, 30)], axis=2).astype(np.uint8)
    values[:10, :10] = 0
    return values


def changed(picture, name, severity, image="a"):
    return by_name()[name](picture, severity, image).astype(float)


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.name)
@pytest.mark.parametrize("side", [1, 5, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_spoilt_picture_is_a_picture_and_the_same_every_time(corruption, side, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels)).astype(np.uint8)
    before = pixels.copy()
    for severity in SEVERITIES:
        found = corruption(pixels, severity, "image")
        assert (found.shape, found.dtype) == (pixels.shape, np.uint8)
        assert np.array_equal(found, corruption(pixels, severity, "image"))
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("corruption", [c for c in CORRUPTIONS if c.name != "saturation"], ids=lambda c: c.name)
def test_a_higher_severity_is_further_from_the_clean_picture(corruption, picture):
    apart = [np.abs(corruption(picture, s, "image").astype(float) - picture).mean() for s in SEVERITIES]
    assert apart[0] > 0
    assert apart[-1] > 1.3 * apart[0]


@pytest.mark.parametrize("name", ["gaussian_noise", "rotation", "patches", "elastic", "fog"])
def test_another_image_or_severity_takes_another_chance(name, picture):
    flat = np.full_like(picture, 128)
    flat[20:40] = 60
    assert len({changed(flat, name, 3, image).tobytes() for image in "abcdefgh"}) > 1


@pytest.mark.parametrize(("severity", "sigma"), [*zip(SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True)])
def test_gaussian_noise_has_its_standard_deviation(severity, sigma):
    grey = np.full((200, 200, 3), 128, np.uint8)
    clipped = np.clip(128 / 255 + np.random.default_rng(0).normal(0, sigma, 100_000), 0, 1).std()
    assert (changed(grey, "gaussian_noise", severity) / 255).std() == pytest.approx(clipped, rel=0.02)


def test_shot_noise_is_that_of_counted_photons():
    grey = np.full((200, 200, 3), 102, np.uint8)
    found = changed(grey, "shot_noise", 2) / 255
    assert found.mean() == pytest.approx(0.4, rel=0.01)
    assert found.var() == pytest.approx(0.4 / 25, rel=0.03)


def test_impulses_are_black_and_white_and_as_many_as_said():
    grey = np.full((200, 200, 3), 100, np.uint8)
    found = changed(grey, "impulse_noise", 3)
    assert set(np.unique(found)) == {0, 100, 255}
    assert (found != 100).mean() == pytest.approx(0.09, rel=0.05)


def test_brightness_and_saturation_change_what_they_name_alone(picture):
    hue, saturation, value = hsv(picture)
    _, brighter_s, brighter_v = hsv(by_name()["brightness"](picture, 1, "a"))
    sure = (value > 0.3) & (value < 0.85)
    assert np.abs(brighter_v - np.clip(value + 0.1, 0, 1)).max() < 0.005
    assert np.abs(brighter_s - saturation)[sure].max() < 0.02
    faded_h, faded_s, faded_v = hsv(by_name()["saturation"](picture, 1, "a"))
    assert np.abs(faded_v - value).max() < 1e-9
    assert np.abs(faded_s - 0.3 * saturation)[sure].max() < 0.02
    coloured = sure & (saturation > 0.5)
    assert (np.abs((faded_h - hue + 0.5) % 1 - 0.5)[coloured] < 0.02).all()


def test_contrast_keeps_the_mean(picture):
    found = changed(picture, "contrast", 2)
    assert found.mean(axis=(0, 1)) == pytest.approx(picture.mean(axis=(0, 1)), abs=0.5)
    assert found.std(axis=(0, 1)) == pytest.approx(0.3 * picture.std(axis=(0, 1)), rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_that_of_scipy(severity):
    from scipy.ndimage import gaussian_filter

    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 1)).astype(np.uint8)
    sigma = (1, 2, 3, 4, 6)[severity - 1]
    expected = gaussian_filter(pixels[:, :, 0].astype(float), sigma, mode="mirror")
    assert np.abs(changed(pixels, "gaussian_blur", severity)[:, :, 0] - expected).max() < 1


def test_lengths_are_in_proportion_to_the_picture():
    small, large = np.zeros((56, 56, 1), np.uint8), np.zeros((224, 224, 1), np.uint8)
    small[28, 28], large[112, 112] = 255, 255
    reach = [(changed(p, "defocus", 5)[:, :, 0] > 0).any(axis=0).sum() for p in (small, large)]
    assert reach[0] == pytest.approx(reach[1] / 4, abs=1.5)
    assert reach[1] == pytest.approx(20, abs=2)  # a disk of radius 10, of 224 pixels


def test_jpeg_is_jpeg_and_pixelating_makes_squares(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=15)
    assert np.array_equal(by_name()["jpeg"](picture, 3, "a"), np.asarray(Image.open(buffer)))
    squares = by_name()["pixelate"](picture, 4, "a")
    assert len(np.unique(squares.reshape(-1, 3), axis=0)) <= round(64 * 0.3) ** 2


def test_turning_and_zooming_go_where_they_should():
    dot = np.zeros((65, 65, 1), np.uint8)
    dot[32 - 2 : 32 + 3, 52 - 2 : 52 + 3] = 255  # 20 to the right of the middle

    def centre(found):
        y, x = np.nonzero(found[16:49, 16:49, 0] > 100)
        return y.mean() + 16 - 32, x.mean() + 16 - 32

    nearer = by_name()["zoom_out"](dot, 4, "a")
    assert centre(nearer) == pytest.approx((0, 10), abs=1)
    y, x = np.nonzero(by_name()["rotation"](dot, 5, "a")[:, :, 0] > 100)
    near = np.hypot(y - 32, x - 32) < 24
    angle = np.rad2deg(np.arctan2((y[near] - 32).mean(), (x[near] - 32).mean()))
    assert abs(angle) == pytest.approx(45, abs=4)


def test_patches_and_borders_cover_what_they_say(picture):
    bright = np.full((60, 60, 3), 255, np.uint8)
    covered = (by_name()["patches"](bright, 4, "a") == 127).all(axis=2).mean()
    assert 0.3 <= covered < 0.3 + 1 / 36
    framed = by_name()["border"](bright, 3, "a")
    assert (framed == 127).all(axis=2).mean() == pytest.approx(1 - (42 / 60) ** 2)


def test_constants_are_those_of_the_literature():
    found = {c.name: c.strengths for c in CORRUPTIONS}
    assert found["brightness"] == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert found["contrast"] == (0.4, 0.3, 0.2, 0.1, 0.05)
    assert found["jpeg"] == (25, 18, 15, 10, 7)
    assert found["pixelate"] == (0.6, 0.5, 0.4, 0.3, 0.25)
    assert found["defocus"] == (3, 4, 6, 8, 10)
    assert {c.challenge for c in CORRUPTIONS} == {
        "viewpoint", "scale", "illumination", "deformation", "occlusion", "sensor", "transport",
    }  # fmt: skip
