import io
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline import fastjpeg
from pipeline.batches import decoder
from pipeline.errors import ImageError
from pipeline.fastjpeg import best_resize, factor_of, fast_bytes, fast_pixels, resize_with_pillow, resize_with_vectors
from pipeline.images import opened, picture_bytes
from pipeline.rows import Row
from pipeline.transforms import Transforms

LIMIT = 1_000_000
RESIZES = [resize_with_pillow, resize_with_vectors]
SIZES = [(64, 48), (48, 64), (61, 47), (47, 61), (40, 40), (33, 97), (90, 35), (32, 32), (33, 32), (61, 61)]


def photo(width: int, height: int) -> Image.Image:
    """Waves without symmetry, so that every mistake of a pixel, a side or a turn shows, and nothing else does."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    red, green = 128 + 90 * np.sin(x / 5 + y / 11), 255 * x / width
    return Image.fromarray(np.dstack([red, green, 255 * y / height]).astype(np.uint8), "RGB")


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 92} | options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def row(data: bytes) -> Row:
    return Row(0, "file#0", "segment", 0, data)


def both(data: bytes, transforms: Transforms, limit: int = LIMIT):
    """Return what the reference and the whole fast path say."""
    return decoder(transforms, limit)(row(data)), decoder(transforms, limit, exact=False)(row(data))


def fast(data: bytes, transforms: Transforms, resize=resize_with_pillow):
    """Return what the fast decoder alone says: None where it leaves the answer to the reference."""
    with opened(data, LIMIT) as image:
        return fast_pixels(data, image, transforms, resize) if fastjpeg.is_fast(image, transforms) else None


def apart(pixels, others) -> int:
    assert pixels.shape == others.shape
    return int(np.abs(pixels.astype(int) - others).max())


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_and_size_gives_the_references_pixels(orientation, resize):
    for size in SIZES:
        data = jpeg(photo(*size), exif=turned(orientation))
        for transforms in (Transforms(32, 28), Transforms(32, 27), Transforms(31, 31)):
            expected, upright = both(data, transforms)[0]
            pixels, found = fast(data, transforms, resize)
            assert found == upright
            assert apart(pixels, expected) <= 2, (size, transforms.crop_px)
            assert np.abs(pixels.astype(int) - expected).mean() < 0.2


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"restart_marker_blocks": 3},
        {"optimize": True, "quality": 30},
        {"keep_rgb": True},
        {"comment": b"\xff\xd9 no end" * 50},
        {"icc_profile": b"profile" * 20_000},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_kind_of_jpeg_gives_the_references_pixels(options, resize):
    data = jpeg(photo(63, 50), **options)
    assert apart(fast(data, Transforms(32, 28), resize)[0], both(data, Transforms(32, 28))[0][0]) <= 1


@pytest.mark.parametrize("resize", RESIZES)
def test_bicubic_gives_the_references_pixels(resize):
    data, bicubic = jpeg(photo(63, 50)), Transforms(32, 28, interpolation="bicubic")
    pixels = fast(data, bicubic, resize)[0]
    assert apart(pixels, both(data, bicubic)[0][0]) <= 1
    assert apart(pixels, fast(data, Transforms(32, 28), resize)[0]) > 1


def test_pictures_are_enlarged_as_the_reference_enlarges_them():
    data = jpeg(photo(20, 25))
    assert apart(fast(data, Transforms(64, 56))[0], both(data, Transforms(64, 56))[0][0]) <= 1


@pytest.mark.parametrize("resize", RESIZES)
def test_grey_files_and_grey_models_agree_with_the_reference(resize):
    grey = Transforms(32, 28, "L", (0.5,), (0.5,))
    for image in (photo(60, 50), photo(60, 50).convert("L")):
        for transforms in (grey, Transforms(32, 28)):
            data = jpeg(image)
            expected, pixels = both(data, transforms)[0][0], fast(data, transforms, resize)[0]
            assert pixels.shape == (28, 28, transforms.num_channels)
            assert apart(pixels, expected) <= 2  # luma straight from the file, instead of rounded by way of RGB


@pytest.mark.parametrize(
    ("size", "resize_px", "factor"),
    [
        ((1023, 4000), 256, 1),
        ((1024, 1024), 256, 2),
        ((4000, 2047), 256, 2),
        ((2048, 2049), 256, 4),
        ((6000, 4100), 256, 8),
        ((60_000, 1), 256, 1),
        ((928, 928), 232, 2),
    ],
)
def test_the_decoder_divides_only_as_far_as_the_short_side_allows(size, resize_px, factor):
    assert factor_of(min(size), resize_px) == factor


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((127, 199), (127, 199)),
        ((130, 264), (65, 132)),
        ((129, 263), (65, 132)),
        ((513, 601), (65, 76)),
        ((512, 1024), (64, 128)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", RESIZES)
def test_large_pictures_are_decoded_smaller_and_cropped_at_the_same_place(size, decoded, orientation, resize):
    seen = []

    def spy(picture, *arguments):
        seen.append(picture.pixels.shape[1::-1])
        return resize(picture, *arguments)

    smooth = photo(size[0] // 8, size[1] // 8).resize(size, Image.Resampling.BICUBIC)
    data = jpeg(smooth, quality=98, subsampling=0, exif=turned(orientation))
    pixels, upright = fast(data, Transforms(32, 28), spy)
    expected, reference_upright = both(data, Transforms(32, 28))[0]
    assert seen == [decoded]
    assert upright == reference_upright
    assert (
        np.abs(pixels.astype(int) - expected).mean() < 1
    )  # it is over 3 where a shrunk picture's last pixel, which is a part of one, counts in full


@pytest.mark.parametrize(
    ("image", "kind", "transforms"),
    [
        (photo(60, 50).convert("CMYK"), "JPEG", Transforms(32, 28)),
        (photo(60, 50), "PNG", Transforms(32, 28)),
        (photo(60, 50), "WEBP", Transforms(32, 28)),
        (photo(60, 50), "JPEG", Transforms(20, 28)),
    ],
    ids=["cmyk", "png", "webp", "crop larger than the picture"],
)
def test_what_the_fast_path_cannot_do_is_the_reference_to_the_bit(image, kind, transforms):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    assert fast(buffer.getvalue(), transforms) is None
    expected, found = both(buffer.getvalue(), transforms)
    assert np.array_equal(found[0], expected[0])
    assert found[1] == expected[1]


def with_junk_before_a_marker(data: bytes) -> bytes:
    end = data.index(b"\xff\xdb")
    return data[:end] + b"\x00\x01\x02" + data[end:]


def without_its_end(data: bytes) -> bytes:
    return data[:-2]


@pytest.mark.parametrize("change", [with_junk_before_a_marker, without_its_end])
def test_a_file_that_the_strict_decoder_refuses_gets_the_references_answer(change):
    data = change(jpeg(photo(60, 50)))
    expected, found = both(data, Transforms(32, 28))
    assert type(found) is type(expected)
    if not isinstance(expected, ImageError):
        assert fast(data, Transforms(32, 28)) is None
        assert np.array_equal(found[0], expected[0])


def verdict(result) -> tuple:
    if isinstance(result, ImageError):
        return result.stage, result.reason, result.message, type(result.__cause__)
    return "good", result[1]


whole = jpeg(photo(60, 50))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "not_an_image"),
        (b"\xff\xd8", "not_an_image"),
        (b"\xff\xd8\xff\xe0 no more than a start", "truncated"),
        (b"\xff\xd8\xff\xdb\0\x05\0\0\0" + whole[20:], "not_an_image"),
        (whole[:10], "truncated"),
        (whole[: len(whole) // 2], "truncated"),
        (whole[:-200], "truncated"),
        (whole[:700], "truncated"),
        (whole.replace(b"\xff\xda", b"\xff\xd9"), "damaged"),
        (jpeg(Image.new("RGB", (1001, 1000))), "too_large"),
        (jpeg(Image.new("L", (65_500, 16))), "too_large"),
        (jpeg(Image.new("RGB", (1, 20_000))), "too_thin"),
    ],
)
def test_a_bad_image_has_the_same_verdict_on_both_paths(data, reason):
    expected, found = both(data, Transforms(64, 56))
    assert verdict(found) == verdict(expected)
    assert expected.reason == reason


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (65_500, 15), (15, 60_000), (2, 3)])
def test_strange_sizes_are_the_references(size):
    expected, found = both(jpeg(photo(*size)), Transforms(16, 16))
    assert verdict(found) == verdict(expected)
    if verdict(expected)[0] == "good":
        assert apart(found[0], expected[0]) <= 1


def test_damaged_jpegs_have_the_same_verdict_on_both_paths():
    random_ = random.Random("damage")
    noise = Image.effect_noise((96, 80), 80).convert("RGB")
    kinds = [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"exif": turned(6)}]
    originals = [jpeg(image, **kind) for image in (noise, photo(96, 80), photo(96, 80).convert("L")) for kind in kinds]
    exact, quick = decoder(Transforms(32, 28), LIMIT), decoder(Transforms(32, 28), LIMIT, exact=False)
    seen = set()
    for case in range(400):
        data = bytearray(random_.choice(originals))
        for _ in range(random_.choice([1, 1, 3])):
            data[random_.randrange(len(data) if case % 2 else 700)] = random_.randrange(256)
        if case % 4 == 0:
            del data[random_.randrange(len(data)) :]
        expected = verdict(exact(row(bytes(data))))
        assert verdict(quick(row(bytes(data)))) == expected, case
        seen.add(expected[1] if expected[0] == "decode" else "good")
    assert seen >= {"good", "truncated", "damaged"}


def test_out_of_memory_is_not_taken_for_a_bad_image(monkeypatch):
    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", exhausted)
    with pytest.raises(MemoryError):
        decoder(Transforms(32, 28), LIMIT, exact=False)(row(whole))


def test_exact_never_asks_the_fast_decoder(monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", forbidden)
    assert verdict(decoder(Transforms(32, 28), LIMIT, exact=True)(row(whole)))[0] == "good"


def test_what_decoding_takes_is_told_from_the_header():
    transforms = Transforms(32, 28)
    for data, expected in (
        (jpeg(photo(128, 128)), 128 * 128 * 8 / 4),
        (jpeg(photo(127, 128)), 127 * 128 * 8),
        (jpeg(photo(128, 128), progressive=True), 128 * 128 * (8 / 4 + 6)),
    ):
        with opened(data, LIMIT) as image:
            assert fast_bytes(image, transforms) == expected
            assert picture_bytes(image) == image.width * image.height * 8


def test_pillow_resizes_where_there_is_no_wheel_of_the_other(monkeypatch):
    assert best_resize() is resize_with_vectors
    monkeypatch.setattr(fastjpeg, "cykooz_resizer", None)
    assert best_resize() is resize_with_pillow


def test_threads_resize_at_the_same_time_each_its_own():
    """One resizer is not for two threads: it refuses the second."""
    pictures = [jpeg(photo(60 + n, 50)) for n in range(16)]
    alone = [fast(data, Transforms(32, 28), resize_with_vectors)[0] for data in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = pool.map(lambda data: fast(data, Transforms(32, 28), resize_with_vectors), pictures * 20)
        assert all(np.array_equal(found[0], alone[n % 16]) for n, found in enumerate(together))


def test_real_photos_agree_with_the_reference(shared_data):
    import pyarrow.parquet as pq

    table = pq.read_table(shared_data / "imagenet_sample100" / "sample-00000-of-00001.parquet", columns=["image"])
    exact, quick = decoder(Transforms(), 10**8), decoder(Transforms(), 10**8, exact=False)
    differences = []
    for data in table["image"].to_pylist()[:25]:
        expected, found = exact(row(data)), quick(row(data))
        assert found[1] == expected[1]
        differences.append(np.abs(found[0].astype(int) - expected[0]).mean())
    assert np.mean(differences) < 0.5
