"""Decoded batches of a shard: the next batches are read and decoded in threads while the caller uses this one."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from pipeline.errors import ImageError
from pipeline.images import decode
from pipeline.rows import Row
from pipeline.transforms import Pixels, Transforms

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard, in order.

    `pixels` is uint8 [B, H, W, C] for the B rows in `good`; `sizes` their upright (width, height); `bad` the others,
    each with what is wrong with it. `wait_s` is how long the caller had to wait.
    """

    good: list[Row]
    sizes: list[tuple[int, int]]
    pixels: Pixels
    bad: list[tuple[Row, ImageError]]
    wait_s: float = 0.0


Decoder = Callable[[Row], tuple[Pixels, tuple[int, int]] | ImageError]


def decoder(transforms: Transforms, max_pixels: int, exact: bool = True) -> Decoder:
    """Return a function that turns a row into model input and its upright size, or into the error that it is."""

    def decode_row(row: Row) -> tuple[Pixels, tuple[int, int]] | ImageError:
        if row.data is None:
            return row.error or ImageError("read", "null", "no data")
        try:
            decoded = decode(row.data, transforms.color, max_pixels)
            return transforms.pixels(decoded.image), (decoded.width, decoded.height)
        except ImageError as error:
            return error

    return decode_row


def decoded_batches(
    chunks: Iterator[list[Row]], decode_row: Decoder, transforms: Transforms, threads: int
) -> Iterator[Batch]:
    """Read and decode lists of rows ahead of the caller, at most BATCHES_AHEAD + 2 of them in memory.

    Errors of reading (`chunks`) reach the caller as they are; errors of one image are in its batch's `bad`.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(threads) as pool:
        ahead: deque[tuple[list[Row], list[Future[tuple[Pixels, tuple[int, int]] | ImageError]]]] = deque()
        reading: Future[list[Row] | None] | None = reader.submit(next, chunks, None)
        while reading or ahead:
            started = perf_counter()
            while reading and len(ahead) <= BATCHES_AHEAD and (reading.done() or not ahead):
                read = reading.result()
                reading = reader.submit(next, chunks, None) if read is not None else None
                if read is not None:
                    ahead.append((read, [pool.submit(decode_row, row) for row in read]))
            if ahead:
                rows, futures = ahead.popleft()
                results = [future.result() for future in futures]
                yield _batch(rows, results, transforms, perf_counter() - started)


def _batch(
    rows: list[Row], results: list[tuple[Pixels, tuple[int, int]] | ImageError], transforms: Transforms, wait_s: float
) -> Batch:
    good, sizes, pictures, bad = [], [], [], []
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, ImageError):
            bad.append((row, result))
        else:
            good.append(row)
            pictures.append(result[0])
            sizes.append(result[1])
    shape = (0, transforms.crop_px, transforms.crop_px, transforms.num_channels)
    return Batch(good, sizes, np.stack(pictures) if pictures else np.empty(shape, np.uint8), bad, wait_s)
