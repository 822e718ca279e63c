import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.digits import NUM_FILES, write_digits
from pipeline.errors import ImageError
from pipeline.images import decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "digits"
    assert write_digits(folder)
    return folder


def rows(folder) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_digit_is_there_once_with_its_label_and_pixels(folder):
    digits, found = load_digits(), {row["image_id"]: row for row in rows(folder)}
    assert len(found) == 1797 + NUM_FILES == len(rows(folder))
    for number in (0, 1, 777, 1796):
        row = found[f"digit-{number:04d}"]
        pixels = np.asarray(Image.open(io.BytesIO(row["image"])))
        assert row["label"] == str(digits.target[number])
        assert np.abs(pixels / 255 * 16 - digits.images[number]).max() < 0.04
    labels = [row["label"] for key, row in found.items() if key.startswith("digit")]
    assert np.array_equal(np.bincount([int(label) for label in labels]), np.bincount(digits.target))


def test_each_file_has_one_planted_bad_row(folder):
    reasons = {}
    for path in sorted(folder.glob("*.parquet")):
        (bad,) = [row for row in pq.read_table(path).to_pylist() if row["image_id"].startswith("bad")]
        if bad["image"] is None:
            reasons[bad["image_id"]] = "null"
            continue
        with pytest.raises(ImageError) as caught:
            decode(bad["image"], "L", 10_000)
        reasons[bad["image_id"]] = caught.value.reason
    assert reasons == {
        "bad-truncated": "truncated", "bad-empty": "empty", "bad-not-an-image": "not_an_image", "bad-null": "null",
    }  # fmt: skip


def test_digits_that_are_there_are_not_written_again(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert not write_digits(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert len(before) == NUM_FILES


def test_equal_files_every_time(folder, tmp_path):
    write_digits(tmp_path)
    assert all((tmp_path / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
