"""Photos kept beside a bundle: on them a fast path must agree with the reference before it labels anything."""

import io
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import layout
from pipeline.errors import AlreadyExistsError, NightshiftError, NotFoundError
from pipeline.rows import Row
from pipeline.storage import Storage

NUM_PHOTOS = 64
SCHEMA = pa.schema([("image", pa.binary())], metadata={"nightshift.schema": "calibration/1"})


def calibration_photos(store: Storage, model: str, version: str, supply: Callable[[], Iterable[bytes]]) -> list[bytes]:
    """Return the bundle's photos; where it has none yet, take the first of `supply` and keep them.

    Of several labellers that do so at once, one keeps its photos and all use these. Where none can be kept (a store that
    is read-only or cannot be reached), this process uses its own.
    """
    path = f"{layout.bundle(model, version)}/calibration.parquet"
    kept = _read(store, path)
    if kept:
        return kept
    photos = [photo for photo, _ in zip(supply(), range(NUM_PHOTOS), strict=False)]
    if not photos:
        return []
    try:
        store.create(path, _encode(photos))
    except AlreadyExistsError:
        return _read(store, path) or photos
    except NightshiftError:
        return photos
    return photos


def keep_photos(store: Storage, model: str, version: str, photos: Iterable[bytes]) -> None:
    """Keep photos beside a bundle that has none."""
    calibration_photos(store, model, version, lambda: photos)


def photos_of(rows: Iterable[list[Row]], decodes: Callable[[Row], bool]) -> Iterator[bytes]:
    """Yield the encoded bytes of the rows that can be decoded."""
    for row in (row for part in rows for row in part):
        if row.data is not None and decodes(row):
            yield row.data


def _encode(photos: list[bytes]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": photos}, schema=SCHEMA), buffer, compression="none")
    return buffer.getvalue()


def _read(store: Storage, path: str) -> list[bytes]:
    """Return the photos that are kept, none when there are none or the file is damaged."""
    try:
        data = store.read(path)
    except NotFoundError:
        return []
    try:
        images = pq.read_table(io.BytesIO(data), columns=["image"])["image"].to_pylist()
    except (pa.ArrowInvalid, pa.ArrowIOError, KeyError):
        return []
    return [image for image in images if isinstance(image, bytes)]
