import io
import random
import struct
import threading
import tracemalloc
import warnings
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images import decode

LIMIT = 1_000_000


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture in which every corner has its own colour."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    return Image.fromarray(np.dstack([red, green, 255 - red]).astype(np.uint8), "RGB")


def bare_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def reason(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, "RGB", limit)
    assert caught.value.stage == "decode"
    assert caught.value.message
    return caught.value.reason


def difference(image: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(image, np.int16) - np.asarray(other, np.int16)).max())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_decode_to_the_very_pixels(kind):
    decoded = decode(encoded(gradient(), kind), "RGB", LIMIT)
    assert (decoded.width, decoded.height, decoded.image.mode) == (40, 30, "RGB")
    assert difference(decoded.image, gradient()) == 0


@pytest.mark.parametrize(
    "options", [{"kind": "JPEG", "quality": 95}, {"kind": "WEBP", "quality": 95}, {"kind": "WEBP", "lossless": True}]
)
def test_lossy_formats_decode_to_nearly_the_pixels(options):
    assert difference(decode(encoded(gradient(), **options), "RGB", LIMIT).image, gradient()) <= 16


def test_grey_is_asked_for_and_given():
    decoded = decode(encoded(gradient(), "PNG"), "L", LIMIT)
    assert decoded.image.mode == "L"
    assert difference(decoded.image, gradient().convert("L")) == 0


def test_zero_bytes_are_empty():
    assert reason(b"") == "empty"


@pytest.mark.parametrize(
    "data", [b"<html><body>404 Not Found</body></html>", b"\xff\xd8", b"PK\x03\x04 a zip", b"\x00" * 100]
)
def test_what_is_no_image_is_named_so_with_its_first_bytes(data):
    assert reason(data) == "not_an_image"
    with pytest.raises(ImageError, match=r"bytes start with"):
        decode(data, "RGB", LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_file_is_truncated_and_the_cause_is_kept(kind):
    data = encoded(Image.effect_noise((200, 200), 60).convert("RGB"), kind)
    assert reason(data[: len(data) // 2]) == "truncated"
    with pytest.raises(ImageError) as caught:
        decode(data[: len(data) // 2], "RGB", LIMIT)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("width", [30_000, 5_000])
def test_huge_header_is_refused_before_any_pixel_is_allocated(width):
    data = bare_png(width, 30_000)  # the first is over Pillow's own limit, the second (150 million) only over ours
    tracemalloc.start()
    assert reason(data, 100_000_000) == "too_large"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_limit_is_inclusive():
    data = encoded(gradient(40, 30), "PNG")
    assert decode(data, "RGB", 1200).width == 40
    assert reason(data, 1199) == "too_large"


def test_cmyk_jpeg_keeps_its_colours():
    picture = gradient()
    decoded = decode(encoded(picture.convert("CMYK"), "JPEG", quality=95), "RGB", LIMIT)
    assert decoded.image.mode == "RGB"
    assert difference(decoded.image, picture) <= 24


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    values = np.array([[0, 257, 128 * 257, 65535], [256, 300, 40000, 65534]], np.uint16)
    decoded = decode(encoded(Image.fromarray(values), kind), "RGB", LIMIT)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(decoded.image)[:, :, 0], expected)
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(values), kind), "L", LIMIT).image), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[0.0, 128.2, 300.0]], [[0, 128, 255]]),
        ([[float("nan"), 0.0, 1.0]], None),
    ],
)
def test_float_pictures_are_read_as_fractions_or_as_bytes(values, expected):
    decoded = decode(encoded(Image.fromarray(np.array(values, np.float32)), "TIFF"), "L", LIMIT)
    assert decoded.image.size == (3, 1)
    assert expected is None or np.asarray(decoded.image).tolist() == expected


@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize(
    ("mode", "clear", "solid"),
    [("RGBA", (10, 20, 30, 0), (0, 0, 0, 255)), ("LA", (10, 0), (0, 255))],
)
def test_transparency_is_laid_on_white(color, mode, clear, solid):
    picture = Image.new(mode, (2, 1), clear)
    picture.putpixel((1, 0), solid)
    decoded = decode(encoded(picture, "PNG"), color, LIMIT).image
    white, black = ((255,) * 3, (0,) * 3) if color == "RGB" else (255, 0)
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 0))) == (white, black)


def test_half_transparent_black_becomes_middle_grey():
    decoded = decode(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"), "RGB", LIMIT)
    assert decoded.image.getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_entry_becomes_white(kind):
    picture = Image.new("P", (2, 1))
    picture.putpalette([200, 0, 0, 0, 0, 200])
    picture.putpixel((1, 0), 1)
    decoded = decode(encoded(picture, kind, transparency=0), "RGB", LIMIT).image
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 200)]


def test_transparent_colour_key_of_an_rgb_png_becomes_white():
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (9, 9, 9))
    decoded = decode(encoded(picture, "PNG", transparency=(1, 2, 3)), "RGB", LIMIT).image
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_several_counts(kind):
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data, "RGB", LIMIT).image.getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_sizes_are_upright(orientation):
    inverse = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180], 4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90], 7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    stored = gradient(64, 48)
    for step in inverse[orientation]:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[274] = orientation
    decoded = decode(encoded(stored, "JPEG", exif=exif, quality=95), "RGB", LIMIT)
    assert (decoded.width, decoded.height) == decoded.image.size == (64, 48)
    assert difference(decoded.image, gradient(64, 48)) <= 16


def test_unreadable_exif_of_a_readable_image_counts_as_none():
    data = encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f garbage")
    assert decode(data, "RGB", LIMIT).width == 40


def test_postscript_is_never_run():
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert reason(program) == "not_an_image"


def test_memory_error_is_not_the_images_fault(monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
    with pytest.raises(MemoryError):
        decode(encoded(gradient(), "BMP"), "RGB", LIMIT)


def test_decoding_in_threads_leaves_no_warning_filter_behind():
    """`warnings.catch_warnings` is not thread-safe: a decoder that used it would end with another thread's filters."""
    data = encoded(gradient(), "PNG")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode(data, "RGB", LIMIT) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_a_limit_above_pillows_own_is_the_limit():
    data = encoded(Image.new("1", (20_000, 10_000)), "PNG")  # 200 million pixels: Pillow alone refuses over 179 million
    assert decode(data, "L", 200_000_000).width == 20_000


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_bytes_decode_or_raise_image_error_and_nothing_else(kind):
    random_ = random.Random(f"fuzz {kind}")
    noise = Image.effect_noise((48, 40), 80).convert("RGB")
    options = (
        [{}, {"progressive": True}] if kind == "JPEG" else [{"compression": "tiff_lzw"}, {}] if kind == "TIFF" else [{}]
    )
    originals = [encoded(image, kind, **o) for image in (noise, gradient(48, 40)) for o in options]
    outcomes = set()
    for case in range(60):
        data = bytearray(originals[case % len(originals)])
        for _ in range(random_.choice([1, 2, 5, 20])):
            data[random_.randrange(len(data) if random_.random() < 0.4 else min(64, len(data)))] = random_.randrange(
                256
            )
        if case % 3 == 0:
            del data[random_.randrange(len(data)) :]
        try:
            outcomes.add(decode(bytes(data), "RGB", LIMIT).image.mode)
        except ImageError as error:
            outcomes.add(error.reason)
    assert "RGB" in outcomes or kind == "PNG"  # whose checksums find nearly all damage
    assert outcomes - {"RGB"}
    assert outcomes <= {"RGB", "empty", "not_an_image", "too_large", "truncated", "damaged"}


def test_real_photos_of_odd_modes_decode(shared_data):
    table = pq.read_table(shared_data / "imagenet_sample100" / "sample-00000-of-00001.parquet", columns=["image"])
    modes = set()
    for data in table["image"].to_pylist():
        modes.add(Image.open(io.BytesIO(data)).mode)
        assert decode(data, "RGB", 100_000_000).image.mode == "RGB"
    assert modes >= {"RGB", "L"}
