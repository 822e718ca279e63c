import io
import math

import numpy as np
import pytest
from PIL import Image

from pipeline.augmentation import Augmenter, random_window
from pipeline.augmentsettings import AugmentSettings
from pipeline.errors import ImageError
from pipeline.fastjpeg import Shrunk, resize_with_pillow
from pipeline.transforms import Transforms

RGB = Transforms(40, 32)


def encoded(size=(120, 90), format="JPEG", mode="RGB", exif=None):
    """A picture of smooth colours: red grows to the right, green downwards."""
    across, down = np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1])
    values = np.stack([np.tile(across, (size[1], 1)), np.tile(down[:, None], (1, size[0])), np.full(size[::-1], 90)], 2)
    file = io.BytesIO()
    image = Image.fromarray(values.astype(np.uint8)).convert(mode)
    image.save(file, format, **({"exif": exif} if exif else {}), **({"quality": 95} if format == "JPEG" else {}))
    return file.getvalue()


def augmenter(transforms=RGB, seed=1, **settings):
    return Augmenter(AugmentSettings(**settings), transforms, 10**7, seed)


EVERYTHING = {"crop_area": (0.1, 1), "flip": "both", "rotate_degrees": 20, "color": 0.3, "trivial": True, "erase": 0.5}


def test_the_same_place_of_the_same_epoch_is_the_same_picture_and_any_other_another():
    data, make = encoded(), augmenter(**EVERYTHING)
    first = make(data, 3, 7)
    assert np.array_equal(augmenter(**EVERYTHING)(data, 3, 7), first)
    for other in (make(data, 3, 8), make(data, 4, 7), augmenter(seed=2, **EVERYTHING)(data, 3, 7)):
        assert not np.array_equal(other, first)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("color", ["RGB", "L"])
def test_every_picture_has_the_models_shape(format, color):
    transforms = Transforms(40, 32, color, (0.5,) * (3 if color == "RGB" else 1), (0.5,) * (3 if color == "RGB" else 1))
    for size in ((120, 90), (20, 50), (33, 33), (700, 30)):
        data = encoded(size, format, color)
        for position in range(10):
            pixels = augmenter(transforms, **EVERYTHING)(data, 0, position)
            assert (pixels.shape, pixels.dtype) == ((32, 32, transforms.num_channels), np.uint8)
            assert pixels.flags["C_CONTIGUOUS"]


def test_without_a_random_part_it_is_the_centre_as_it_is_labelled():
    data = encoded()
    with Image.open(io.BytesIO(data)) as image:
        expected = RGB.pixels(image.convert("RGB"))
    plain, mirrored = augmenter(flip="horizontal"), set()
    for position in range(20):
        found = plain(data, 0, position).astype(int)
        turned = np.abs(found[:, ::-1] - expected).max() < np.abs(found - expected).max()
        mirrored.add(bool(turned))
        np.testing.assert_allclose(found[:, ::-1] if turned else found, expected, atol=4)
    assert mirrored == {True, False}


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical", "both"])
def test_pictures_are_mirrored_only_as_they_may_be(flip):
    """Red grows to the right and green downwards, unless a picture is mirrored."""
    data, seen = encoded(), set()
    for position in range(40):
        pixels = augmenter(flip=flip, crop_area=(0.5, 1))(data, 0, position).astype(int)
        seen.add((bool(pixels[16, 0, 0] > pixels[16, -1, 0]), bool(pixels[0, 16, 1] > pixels[-1, 16, 1])))
    across, down = ({True, False} if flip in (name, "both") else {False} for name in ("horizontal", "vertical"))
    assert seen == {(a, d) for a in across for d in down}


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1600, 1200)])
def test_a_random_part_is_cut_where_it_should_be_also_from_a_scaled_decode(size):
    data = encoded(size)
    with Image.open(io.BytesIO(data)) as image:
        whole = np.asarray(image.convert("RGB"))
    for position in range(20):
        window = random_window(*size, 32, (0.2, 1.0), np.random.default_rng([1, 0, position]))
        expected = resize_with_pillow(Shrunk(whole, *size), window, 32, "bilinear")
        found = augmenter(crop_area=(0.2, 1.0))(data, 0, position)
        assert np.abs(found.astype(int) - expected.astype(int)).mean() < 2


def test_pictures_that_lie_on_their_side_are_cut_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right brings it upright
    turned = encoded((640, 480), exif=exif)
    with Image.open(io.BytesIO(turned)) as image:
        upright = image.transpose(Image.Transpose.ROTATE_270)
    file = io.BytesIO()
    upright.save(file, "PNG")
    for position in range(10):
        found = augmenter(crop_area=(0.2, 1.0))(turned, 0, position).astype(int)
        expected = augmenter(crop_area=(0.2, 1.0))(file.getvalue(), 0, position).astype(int)
        assert np.abs(found - expected).mean() < 2


def test_a_part_has_the_area_and_the_ratio_that_are_asked_for():
    areas, ratios = [], []
    for n in range(500):
        window = random_window(400, 300, 32, (0.25, 0.5), np.random.default_rng(n))
        across, down = 400 * 32 / window.width, 300 * 32 / window.height
        areas.append(across * down / 120_000)
        ratios.append(math.log(across / down))
        assert 0 <= window.left <= window.width - 32 + 1e-6
        assert 0 <= window.top <= window.height - 32 + 1e-6
    assert 0.24 < min(areas) < 0.27
    assert 0.48 < max(areas) < 0.51
    assert abs(np.mean(ratios)) < 0.02
    assert max(map(abs, ratios)) <= math.log(4 / 3) + 0.02


def test_a_thin_picture_gives_its_centre():
    window = random_window(1000, 10, 32, (0.9, 1.0), np.random.default_rng(0))
    across, down = 1000 * 32 / window.width, 10 * 32 / window.height
    assert (round(across), round(down)) == (13, 10)
    assert window.left * across / 32 == pytest.approx((1000 - 13) // 2)


def test_bad_pictures_are_errors_and_no_pixels():
    with pytest.raises(ImageError, match="truncated"):
        augmenter(crop_area=(0.5, 1))(encoded((640, 480), "PNG")[:500], 0, 0)
