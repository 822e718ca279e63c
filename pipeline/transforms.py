"""Preprocessing: a decoded picture to model input. It belongs to the weights, so the bundle holds it and nothing else sets it."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import ImageError, ModelError
from pipeline.settings import TransformSettings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Pixels = npt.NDArray[np.uint8]
MAX_RESIZED_PIXELS = 50_000_000  # 150 MB; a strip of 1 x 800 pixels for a model of 256


@dataclass(frozen=True)
class Window:
    """Pixels of a resized picture, and where the crop begins in it: below 0 where a side is shorter than the crop.

    Whole numbers where a picture is labelled. Random parts of pictures in training have fractions of pixels, and their two
    sides may be resized differently.
    """

    width: float
    height: float
    left: float
    top: float


@dataclass(frozen=True)
class Transforms:
    """Resize the short side to `resize_px` (antialiased), centre crop `crop_px`, normalise per channel."""

    resize_px: int = 256
    crop_px: int = 224
    color: str = "RGB"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"  # or bicubic, which some published weights were trained with

    @property
    def num_channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return 3 if self.color == "RGB" else 1

    @property
    def num_bytes(self) -> int:
        """Of one model input, uint8 [crop, crop, C]."""
        return self.crop_px * self.crop_px * self.num_channels

    def window(self, width: int, height: int) -> Window:
        """Return the resized picture and the crop within it, of an upright picture.

        Notes
        -----
        The rounding is torchvision's (`Resize` then `CenterCrop` of a PIL image), which published accuracies rest on:
        the long side is truncated, the crop's offset rounded half to even.

        Raises
        ------
        ImageError
            When the picture is so thin that resizing its short side would make it huge.
        """
        resized = _resized(width, height, self.resize_px)
        if resized[0] * resized[1] > MAX_RESIZED_PIXELS:
            raise ImageError(
                "decode", "too_thin",
                f"{width} x {height} pixels would become {resized[0]} x {resized[1]}, more than {MAX_RESIZED_PIXELS:,}",
            )  # fmt: skip
        return Window(*resized, _offset(resized[0], self.crop_px), _offset(resized[1], self.crop_px))

    def pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 [crop, crop, C] of a picture in our colour mode; a too small one is padded with black.

        Raises
        ------
        ImageError
            When the picture is too thin: see `window`.
        """
        window = self.window(image.width, image.height)
        size, left, top = (int(window.width), int(window.height)), int(window.left), int(window.top)
        if size != image.size:
            image = image.resize(size, FILTERS[self.interpolation])
        cropped = image.crop((left, top, left + self.crop_px, top + self.crop_px))
        array = np.asarray(cropped, dtype=np.uint8)
        return array if array.ndim == 3 else array[:, :, None]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


def transforms_from_json(document: dict[str, Any]) -> Transforms:
    """Undo `Transforms.to_json`."""
    return Transforms(**{**document, "mean": tuple(document["mean"]), "std": tuple(document["std"])})


def resized_to(published: Transforms, size_px: int | None) -> Transforms:
    """Return the preprocessing for an input of `size_px`, what is resized to in proportion to what is cropped."""
    if size_px is None:
        return published
    return replace(published, crop_px=size_px, resize_px=round(size_px * published.resize_px / published.crop_px))


def override(published: Transforms, settings: TransformSettings) -> Transforms:
    """Return the published preprocessing with the values that the config sets."""
    values = {**asdict(published), **settings.model_dump(exclude_none=True)}
    channels = 1 if values["color"] == "L" else 3
    for key in ("mean", "std"):
        given = tuple(values[key])
        values[key] = given * channels if len(given) == 1 else given[:channels]
        if len(values[key]) != channels:
            raise ModelError(
                f"model.transforms.{key}: {len(given)} values for {channels} channels; give 1 or {channels}"
            )
    if min(values["std"]) <= 0:
        raise ModelError(f"model.transforms.std: {list(values['std'])} must be above 0: pixels are divided by it")
    return Transforms(**values)


def _offset(length: int, crop_px: int) -> int:
    """Return where a centred crop begins; negative where a side is too short, so that the rest is padding."""
    return -((crop_px - length) // 2) if length < crop_px else round((length - crop_px) / 2.0)


def _resized(width: int, height: int, short_px: int) -> tuple[int, int]:
    if width <= height:
        return short_px, int(short_px * height / width)
    return int(short_px * width / height), short_px
