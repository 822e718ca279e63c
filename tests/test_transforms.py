import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from pipeline.engine import normalize
from pipeline.errors import ImageError, ModelError
from pipeline.settings import TransformSettings
from pipeline.transforms import Transforms, override, transforms_from_json

ODD_SIZES = [
    (33, 65),
    (65, 33),
    (64, 64),
    (47, 48),
    (301, 199),
    (97, 640),
    (10, 10),
    (7, 90),
    (90, 7),
    (33, 33),
    (1, 1),
]


def picture(size, color="RGB", seed=0):
    shape = (size[1], size[0], 3) if color == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), color)


def published(image, resize_px, crop_px, interpolation=v2.InterpolationMode.BILINEAR):
    """What torchvision's presets do to a PIL picture before they normalise."""
    whole = v2.Compose([v2.Resize(resize_px, interpolation=interpolation, antialias=True), v2.CenterCrop(crop_px)])
    pixels = np.asarray(whole(image))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize(("resize_px", "crop_px"), [(37, 32), (32, 29), (64, 64), (33, 32), (20, 27)])
def test_pixels_are_torchvisions(resize_px, crop_px, color):
    transforms = Transforms(resize_px, crop_px, color)
    for size in ODD_SIZES:
        image = picture(size, color)
        pixels = transforms.pixels(image)
        assert pixels.shape == (crop_px, crop_px, transforms.num_channels)
        assert np.array_equal(pixels, published(image, resize_px, crop_px)), size


def test_pixels_are_torchvisions_at_many_chance_sizes():
    sizes = np.random.default_rng(1).integers(5, 200, (60, 4))
    for number, (width, height, resize_px, crop_px) in enumerate(sizes.tolist()):
        image = picture((width, height), seed=number)
        ours = Transforms(resize_px, crop_px).pixels(image)
        assert np.array_equal(ours, published(image, resize_px, crop_px)), (width, height, resize_px, crop_px)


def test_bicubic_pixels_are_torchvisions_bicubic_ones():
    image = picture((61, 80))
    bicubic = Transforms(37, 32, interpolation="bicubic").pixels(image)
    assert np.array_equal(bicubic, published(image, 37, 32, v2.InterpolationMode.BICUBIC))
    assert not np.array_equal(bicubic, Transforms(37, 32).pixels(image))


def test_a_picture_smaller_than_the_crop_is_padded_with_black_all_around():
    pixels = Transforms(resize_px=2, crop_px=6).pixels(Image.new("RGB", (2, 2), (200, 100, 50)))
    assert pixels[2:4, 2:4].reshape(-1, 3).tolist() == [[200, 100, 50]] * 4
    assert int(pixels.sum()) == 4 * 350


def test_normalizing_is_torchvisions_and_puts_channels_first():
    transforms = Transforms(8, 8)
    pixels = np.stack([transforms.pixels(picture((9, 11), seed=seed)) for seed in range(3)])
    ours = normalize(torch.from_numpy(pixels), transforms)
    channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    theirs = v2.Normalize(transforms.mean, transforms.std)(channels_first.float() / 255)
    assert ours.shape == (3, 3, 8, 8)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_json_and_back_is_the_same_value():
    transforms = Transforms(40, 32, "L", (0.5,), (0.25,), "bicubic")
    assert transforms_from_json(transforms.to_json()) == transforms


def test_documents_without_interpolation_mean_bilinear():
    document = Transforms(40, 32).to_json()
    del document["interpolation"]
    assert transforms_from_json(document) == Transforms(40, 32)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Transforms(256, 224, interpolation="bicubic")),
        ({"resize_px": 232}, Transforms(232, 224, interpolation="bicubic")),
        ({"mean": (0.5,)}, Transforms(256, 224, mean=(0.5,) * 3, interpolation="bicubic")),
        ({"color": "L"}, Transforms(256, 224, "L", (0.485,), (0.229,), "bicubic")),
        ({"color": "L", "mean": (0.1,), "std": (0.3,)}, Transforms(256, 224, "L", (0.1,), (0.3,), "bicubic")),
    ],
)
def test_the_config_overrides_published_values_only_where_it_names_them(settings, expected):
    assert override(Transforms(interpolation="bicubic"), TransformSettings(**settings)) == expected


def test_a_strip_whose_resized_copy_would_be_huge_is_refused():
    """A PNG of 1 x 100,000 pixels is small; resized to a short side of 256 it would be 20 GB."""
    with pytest.raises(ImageError, match="256 x 25600000") as caught:
        Transforms(256, 224).pixels(Image.new("RGB", (1, 100_000)))
    assert (caught.value.stage, caught.value.reason) == ("decode", "too_thin")
    assert Transforms(256, 224).pixels(Image.new("RGB", (10, 5_000))).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": (0.5, 0.5)}, "transforms.mean: 2 values for 3 channels; give 1 or 3"),
        ({"std": (0.0,)}, r"transforms.std: \[0.0, 0.0, 0.0\] must be above 0"),
    ],
)
def test_means_and_deviations_that_fit_no_channels_are_refused(settings, words):
    with pytest.raises(ModelError, match=words):
        override(Transforms(), TransformSettings(**settings))
