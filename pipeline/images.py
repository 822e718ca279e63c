"""Encoded bytes to an upright RGB or grey picture: the reference decoder, which every faster path must agree with.

One policy for every oddity: EXIF rotation is applied, the first frame of an animation counts, transparency is laid on
white, 16 bits are scaled to 8, and an image over the pixel limit is refused before a pixel is decoded.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pipeline.errors import ImageError

# Pillow tries no other decoder: some of its decoders run programs (EPS runs Ghostscript), and each is a way in for bytes
# that nobody vouches for. Importing a plugin registers it; an MPO, several JPEGs in one file, opens as JPEG.
FORMATS = tuple(
    str(reader.format)
    for reader in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """A picture in mode RGB or L, and its upright size in pixels."""

    image: Image.Image
    width: int
    height: int


def decode(data: bytes, color: str, max_pixels: int) -> Decoded:
    """Decode one image with Pillow.

    Parameters
    ----------
    color : str
        `RGB` or `L`.
    max_pixels : int
        Width x height beyond which the header alone is enough to refuse.

    Raises
    ------
    ImageError
        When these bytes will never decode: reason is one of empty, not_an_image, too_large, truncated, damaged.
    """
    with opened(data, max_pixels) as image:
        return finish(image, color)


@contextmanager
def opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Read the header of an image, whose pixels are still encoded; whatever goes wrong inside is an ImageError."""
    if not data:
        raise ImageError("decode", "empty", "the image has 0 bytes")
    try:
        Image.MAX_IMAGE_PIXELS = (
            None  # Pillow's own limit warns, or refuses more than the config allows: ours replaces it
        )
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, max_pixels)
            yield image
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # decoders raise nearly anything: OSError, struct.error, IndexError, zlib.error, ...
        raise _explained(error, data) from error


def finish(image: Image.Image, color: str) -> Decoded:
    """Decode the pixels of an opened image."""
    image.load()
    turn = turn_of(image)
    upright = image if turn is None else image.transpose(turn)
    return Decoded(_flatten(upright, color), upright.width, upright.height)


def picture_bytes(image: Image.Image) -> int:
    """Return about what decoding an opened image takes: the picture and one copy of it, 4 bytes per pixel."""
    return 2 * 4 * image.width * image.height


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(
            "decode", "too_large",
            f"{image.width} x {image.height} pixels, more than input.max_pixels = {max_pixels}",
        )  # fmt: skip


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return how a picture must be turned to stand upright, by its EXIF; unreadable EXIF of a readable image counts as none."""
    try:
        return TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error, ZeroDivisionError):
        return None


def _flatten(image: Image.Image, color: str) -> Image.Image:
    """Return the picture in `color`: 16 and 32 bits scaled to 8, transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert(color)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit samples by 1/257; floats are taken as 0..1 if they stay within, else as 0..255."""
    samples = np.nan_to_num(np.asarray(image))
    if image.mode == "F":
        scaled = samples * 255 if samples.size and samples.max() <= 1 else samples
    else:
        scaled = samples / 257
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _explained(error: Exception, data: bytes) -> ImageError:
    """Name the reason in one word and keep the decoder's own."""
    message = f"{type(error).__name__}: {str(error)[:200]}"
    if isinstance(error, UnidentifiedImageError):
        start = data[:12]
        return ImageError(
            "decode",
            "not_an_image",
            f"not JPEG, PNG, WebP, GIF, BMP or TIFF; the {len(data)} bytes start with {start!r}",
        )
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return ImageError("decode", "truncated", message)
    return ImageError("decode", "damaged", message)
