"""The demo's data set: the 1,797 handwritten digits that scikit-learn carries, as PNG images in Parquet, and a few bad rows."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.errors import UsageError

NUM_FILES, ROWS_PER_GROUP = 4, 100


def write_digits(folder: Path) -> bool:
    """Write the digits below `folder` unless they are there; say whether they were written.

    Each file gets one bad row: a truncated image, an empty one, one that is no image, and a null.

    Raises
    ------
    UsageError
        When scikit-learn is not installed.
    """
    if list(folder.glob("*.parquet")):
        return False
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "the demo's digits come with scikit-learn; install it with: pip install -e '.[demo]', where nightshift's source lies"
        ) from error
    digits = load_digits()
    rows = [
        (f"digit-{number:04d}", _png(pixels), str(label))
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True))
    ]
    bad: list[tuple[str, bytes | None, str]] = [
        ("bad-truncated", rows[0][1][: len(rows[0][1]) * 2 // 3], "0"),
        ("bad-empty", b"", "1"),
        ("bad-not-an-image", b"<html>404 Not Found</html>", "2"),
        ("bad-null", None, "3"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_FILES):
        part = [*rows[number::NUM_FILES], bad[number]]
        ids, images, labels = zip(*part, strict=True)
        table = pa.table({"image_id": list(ids), "image": pa.array(images, pa.binary()), "label": list(labels)})
        pq.write_table(table, folder / f"digits-{number}.parquet", row_group_size=ROWS_PER_GROUP)
    return True


def _png(pixels: np.ndarray) -> bytes:
    """Encode an 8 x 8 scan with values 0..16 as an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
