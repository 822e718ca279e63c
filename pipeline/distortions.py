"""Random changes of one picture: turns, colours, TrivialAugment, erasing. Each takes its chance from the generator given."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pipeline.transforms import Pixels

Fill = tuple[int, ...]
Change = Callable[[Image.Image, float, Fill], Image.Image]
BILINEAR = Image.Resampling.BILINEAR
STRENGTHS = 31


def rotated(image: Image.Image, degrees: float, fill: Fill) -> Image.Image:
    """Turn a picture about its centre; the corners that come free are filled."""
    return image.rotate(degrees, BILINEAR, fillcolor=fill if len(fill) > 1 else fill[0])


def recoloured(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation, in random order, by factors of 1 - strength to 1 + strength."""
    kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    for kind in random.permutation(len(kinds)):
        image = kinds[kind](image).enhance(random.uniform(1 - strength, 1 + strength))
    return image


def trivially_changed(image: Image.Image, fill: Fill, random: np.random.Generator) -> Image.Image:
    """Apply one operation at one strength, both drawn evenly.

    Notes
    -----
    S. Müller and F. Hutter, "TrivialAugment" (arXiv 2103.10158), the wide space of strengths: 31 each.
    """
    change, (low, high), signed = OPERATIONS[random.integers(len(OPERATIONS))]
    strength = low + (high - low) * random.integers(STRENGTHS) / (STRENGTHS - 1)
    return change(image, -strength if signed and random.integers(2) else strength, fill)


def erased(pixels: Pixels, fill: Fill, random: np.random.Generator) -> Pixels:
    """Fill a random box: 2 to 33 % of the area, sides in a ratio of 0.3 to 3.3.

    Notes
    -----
    Z. Zhong et al., "Random erasing data augmentation" (arXiv 1708.04896); ten tries, as in torchvision.
    """
    height, width = pixels.shape[:2]
    for _ in range(10):
        area = height * width * random.uniform(0.02, 0.33)
        ratio = math.exp(random.uniform(math.log(0.3), math.log(3.3)))
        down, across = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < down < height and 0 < across < width:
            top, left = random.integers(height - down + 1), random.integers(width - across + 1)
            changed = pixels.copy()
            changed[top : top + down, left : left + across] = fill
            return changed
    return pixels


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    colour = fill if len(fill) > 1 else fill[0]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BILINEAR, fillcolor=colour)


def _enhanced(kind: Callable[[Image.Image], Any]) -> Change:
    return lambda image, strength, fill: kind(image).enhance(1 + strength)


OPERATIONS: tuple[tuple[Change, tuple[float, float], bool], ...] = (
    (lambda image, strength, fill: image, (0, 0), False),
    (lambda image, s, fill: _affine(image, (1, s, -s * image.height / 2, 0, 1, 0), fill), (0, 0.99), True),
    (lambda image, s, fill: _affine(image, (1, 0, 0, s, 1, -s * image.width / 2), fill), (0, 0.99), True),
    (lambda image, s, fill: _affine(image, (1, 0, s, 0, 1, 0), fill), (0, 32), True),
    (lambda image, s, fill: _affine(image, (1, 0, 0, 0, 1, s), fill), (0, 32), True),
    (rotated, (0, 135), True),
    (_enhanced(ImageEnhance.Brightness), (0, 0.99), True),
    (_enhanced(ImageEnhance.Color), (0, 0.99), True),
    (_enhanced(ImageEnhance.Contrast), (0, 0.99), True),
    (_enhanced(ImageEnhance.Sharpness), (0, 0.99), True),
    (lambda image, strength, fill: ImageOps.posterize(image, round(strength)), (8, 2), False),
    (lambda image, strength, fill: ImageOps.solarize(image, round(strength)), (256, 0), False),
    (lambda image, strength, fill: ImageOps.autocontrast(image), (0, 0), False),
    (lambda image, strength, fill: ImageOps.equalize(image), (0, 0), False),
)
