"""JPEG to model input, about twice as fast as the reference: fewer pixels are decoded and resized, none is copied twice.

It says what a good picture looks like and nothing else: whatever it cannot do, or not without a warning, is None, and
the reference decides. So an image has the same verdict on both paths.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from pipeline.images import picture_bytes, turn_of
from pipeline.transforms import FILTERS, Pixels, Transforms, Window

# The factors for which libjpeg-turbo has vector code; others are slower than decoding in full.
FACTORS = (8, 4, 2)
# What is left must be so much longer than the resized side. Measured on 60 photos of 600 to 1600 pixels, mobilenet_v2, per
# headroom: share of the reference's top-1 labels, images/s: 1: 0.917, 264; 1.5: 0.983, 237; 2: 1.000, 200; 3: 1.000, 162.
HEADROOM = 2


@dataclass(frozen=True)
class Shrunk:
    """A picture, uint8 [h, w, C], with both sides divided: `width` and `height` are what they were over the divisor.

    A part of a pixel counts as one in the array, so `width` may be shorter than the array by less than 1.
    """

    pixels: npt.NDArray[np.uint8]
    width: float
    height: float


# A picture, the window of its resized form, crop_px, interpolation -> the crop, uint8 [crop, crop, C or none].
Resize = Callable[[Shrunk, Window, int, str], Pixels]

# How each turn is undone and done: (sides swapped, rows reversed, columns reversed), in the order of doing.
STEPS = {
    None: (False, False, False),
    Image.Transpose.FLIP_LEFT_RIGHT: (False, False, True),
    Image.Transpose.ROTATE_180: (False, True, True),
    Image.Transpose.FLIP_TOP_BOTTOM: (False, True, False),
    Image.Transpose.TRANSPOSE: (True, False, False),
    Image.Transpose.ROTATE_270: (True, False, True),
    Image.Transpose.TRANSVERSE: (True, True, True),
    Image.Transpose.ROTATE_90: (True, True, False),
}


def is_fast(image: Image.Image, transforms: Transforms) -> bool:
    """Say whether the fast path may try: a JPEG in RGB or grey whose resized form is not smaller than the crop."""
    return image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and transforms.crop_px <= transforms.resize_px


def factor_of(width: int, height: int, resize_px: int) -> int:
    """Return by what the decoder may divide both sides: enough is left for the antialiased resize to decide the pixels."""
    return next((factor for factor in FACTORS if min(width, height) // factor >= HEADROOM * resize_px), 1)


def fast_bytes(image: Image.Image, transforms: Transforms) -> int:
    """Return about what decoding takes: the smaller picture and a copy, and all coefficients where scans refine them."""
    coefficients = 2 * 3 * image.width * image.height if "progressive" in image.info else 0
    return picture_bytes(image) // factor_of(*image.size, transforms.resize_px) ** 2 + coefficients


def fast_pixels(
    data: bytes, image: Image.Image, transforms: Transforms, resize: Resize
) -> tuple[Pixels, tuple[int, int]] | None:
    """Return uint8 [crop, crop, C] and the upright size, or None where the reference must decide.

    Parameters
    ----------
    image : PIL image
        `data`, opened: its header is the authority for size, colours and orientation on both paths.
    """
    turn = turn_of(image)
    swapped, rows_reversed, columns_reversed = STEPS[turn]
    size = image.size[::-1] if swapped else image.size
    try:
        window = transforms.window(*size)
        stored = _stored(window, transforms.crop_px, swapped, rows_reversed, columns_reversed)
        decoded = _decode(data, image, transforms)
        crop = resize(decoded, stored, transforms.crop_px, transforms.interpolation)
    except MemoryError:
        raise
    except Exception:  # of one image, like the reference's: it says what is wrong, if anything is
        return None
    crop = crop.reshape(*crop.shape[:2], -1)
    upright = crop.swapaxes(0, 1) if swapped else crop
    return upright[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1], size


def best_resize() -> Resize:
    """Return the quickest resize of this process: torch's vector code where torch is loaded anyway.

    Measured on one core with 320 x 275 photos: 950 images/s with torch's, 660 with Pillow's, 450 by the reference. Both
    differ from the reference's pixels by at most 1. Importing torch for it costs 2-6 s, the gain of 10,000 images.
    """
    return resize_with_torch if "torch" in sys.modules else resize_with_pillow


def resize_with_pillow(picture: Shrunk, window: Window, crop_px: int, interpolation: str) -> Pixels:
    """Resize only what the crop keeps."""
    across, down = picture.width / window.width, picture.height / window.height
    box = (
        window.left * across,
        window.top * down,
        min(picture.width, (window.left + crop_px) * across),
        min(picture.height, (window.top + crop_px) * down),
    )
    image = Image.fromarray(picture.pixels if picture.pixels.shape[2] == 3 else picture.pixels[:, :, 0])
    return np.asarray(image.resize((crop_px, crop_px), FILTERS[interpolation], box))


def resize_with_torch(picture: Shrunk, window: Window, crop_px: int, interpolation: str) -> Pixels:
    """Resize all, then crop: still faster. Torch knows no part of a pixel; then Pillow does it."""
    if picture.pixels.shape[:2] != (picture.height, picture.width):
        return resize_with_pillow(picture, window, crop_px, interpolation)
    import torch

    batch = torch.from_numpy(picture.pixels)[None].permute(0, 3, 1, 2)
    size = (window.height, window.width)
    resized = torch.nn.functional.interpolate(batch, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0)
    crop: Pixels = resized[window.top : window.top + crop_px, window.left : window.left + crop_px].numpy()
    return crop


def _decode(data: bytes, image: Image.Image, transforms: Transforms) -> Shrunk:
    """Decode as small as may be; ValueError at the least oddity."""
    factor = factor_of(*image.size, transforms.resize_px)
    width, height = (-(-side // factor) for side in image.size)
    smaller = {"min_height": height, "min_width": width, "min_factor": factor} if factor > 1 else {}
    pixels = simplejpeg.decode_jpeg(data, "RGB" if transforms.color == "RGB" else "GRAY", **smaller)
    if pixels.shape[:2] != (height, width):
        raise ValueError(f"decoded {pixels.shape[1]} x {pixels.shape[0]}, expected {width} x {height}")
    return Shrunk(pixels, image.width / factor, image.height / factor)


def _stored(window: Window, crop_px: int, swapped: bool, rows_reversed: bool, columns_reversed: bool) -> Window:
    """Return a window of the upright picture as the window of the picture as it is stored."""
    left = window.width - window.left - crop_px if columns_reversed else window.left
    top = window.height - window.top - crop_px if rows_reversed else window.top
    if swapped:
        return Window(window.height, window.width, top, left)
    return Window(window.width, window.height, left, top)
