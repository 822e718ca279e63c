"""JPEG to model input, about twice as fast as the reference: fewer pixels are decoded and resized, none is copied twice.

It says what a good picture looks like and nothing else: whatever it cannot do, or not without a warning, is None, and
the reference decides. So an image has the same verdict on both paths.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from pipeline.images import picture_bytes, turn_of
from pipeline.transforms import FILTERS, Pixels, Transforms, Window

try:
    import cykooz_resizer
except ImportError:  # there are no wheels for Linux on ARM
    cykooz_resizer = None

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

# What the resizer calls them: both are the kernels of Pillow and torchvision, as wide as the picture shrinks.
KERNELS = {"bilinear": "bilinear", "bicubic": "catmull_rom"}
PIXELS = {3: "U8x3", 1: "U8"}

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


def factor_of(side: int, resized: float) -> int:
    """Return by what the decoder may divide a side: enough is left for the antialiased resize to decide the pixels."""
    return next((factor for factor in FACTORS if side // factor >= HEADROOM * resized), 1)


def fast_bytes(image: Image.Image, transforms: Transforms) -> int:
    """Return about what decoding takes: the smaller picture and a copy, and all coefficients where scans refine them."""
    coefficients = 2 * 3 * image.width * image.height if "progressive" in image.info else 0
    return picture_bytes(image) // factor_of(min(image.size), transforms.resize_px) ** 2 + coefficients


def fast_pixels(
    data: bytes, image: Image.Image, transforms: Transforms, resize: Resize, window: Window | None = None
) -> tuple[Pixels, tuple[int, int]] | None:
    """Return uint8 [crop, crop, C] and the upright size, or None where the reference must decide.

    Parameters
    ----------
    image : PIL image
        `data`, opened: its header is the authority for size, colours and orientation on both paths.
    window : Window, optional
        The crop of the upright picture, where it is not that of the transforms.
    """
    swapped, rows_reversed, columns_reversed = STEPS[turn_of(image)]
    size = image.size[::-1] if swapped else image.size
    try:
        window = window or transforms.window(*size)
        stored = _stored(window, transforms.crop_px, swapped, rows_reversed, columns_reversed)
        decoded = _decode(data, image, stored, transforms.color)
        crop = resize(decoded, stored, transforms.crop_px, transforms.interpolation)
    except MemoryError:
        raise
    except Exception:  # of one image, like the reference's: it says what is wrong, if anything is
        return None
    crop = crop.reshape(*crop.shape[:2], -1)
    upright = crop.swapaxes(0, 1) if swapped else crop
    return upright[:: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1], size


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an opened image as it will stand."""
    width, height = image.size
    return (height, width) if STEPS[turn_of(image)][0] else (width, height)


def best_resize() -> Resize:
    """Return the quickest resize of this platform.

    Measured on one core, decoding included, 406 x 282 photos of 73 kB: 950 images/s with vectors, 670 with Pillow's, which
    has none. Torch's is as quick as the first (910), but importing torch takes as long as 4,000 images gain.
    """
    return resize_with_vectors if cykooz_resizer else resize_with_pillow


def resize_with_vectors(picture: Shrunk, window: Window, crop_px: int, interpolation: str) -> Pixels:
    """Resize only what the crop keeps."""
    height, width, channels = picture.pixels.shape
    left, top, right, bottom = _box(picture, window, crop_px)
    kernel, pixel = cykooz_resizer.FilterType[KERNELS[interpolation]], cykooz_resizer.PixelType[PIXELS[channels]]
    options = cykooz_resizer.ResizeOptions(
        resize_alg=cykooz_resizer.ResizeAlg.convolution(kernel),
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    crop = cykooz_resizer.ImageData(crop_px, crop_px, pixel)
    whole = cykooz_resizer.ImageData(width, height, pixel, picture.pixels.tobytes())
    cykooz_resizer.Resizer().resize(whole, crop, options)  # one per image: it is not for two threads
    return np.frombuffer(crop.get_buffer(), np.uint8).reshape(crop_px, crop_px, channels)


def resize_with_pillow(picture: Shrunk, window: Window, crop_px: int, interpolation: str) -> Pixels:
    """Resize only what the crop keeps."""
    image = Image.fromarray(picture.pixels if picture.pixels.shape[2] == 3 else picture.pixels[:, :, 0])
    box = _box(picture, window, crop_px)
    return np.asarray(image.resize((crop_px, crop_px), FILTERS[interpolation], box))


def _box(picture: Shrunk, window: Window, crop_px: int) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the crop in the picture as it was decoded."""
    across, down = picture.width / window.width, picture.height / window.height
    return (
        window.left * across,
        window.top * down,
        min(picture.width, (window.left + crop_px) * across),
        min(picture.height, (window.top + crop_px) * down),
    )


def _decode(data: bytes, image: Image.Image, stored: Window, color: str) -> Shrunk:
    """Decode as small as may be for the window of the picture as it is stored; ValueError at the least oddity."""
    factor = min(factor_of(image.width, stored.width), factor_of(image.height, stored.height))
    width, height = (-(-side // factor) for side in image.size)
    smaller = {"min_height": height, "min_width": width, "min_factor": factor} if factor > 1 else {}
    pixels = simplejpeg.decode_jpeg(data, "RGB" if color == "RGB" else "GRAY", **smaller)
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
