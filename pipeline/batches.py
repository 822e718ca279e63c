"""Decoded batches of a shard: the next ones are read and decoded in threads, within a budget, while the caller uses this one."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from queue import SimpleQueue
from time import perf_counter

import numpy as np

from pipeline.budget import Budget, Share
from pipeline.errors import ImageError
from pipeline.fastjpeg import best_resize, fast_bytes, fast_pixels, is_fast
from pipeline.images import finish, opened, picture_bytes
from pipeline.rows import Row
from pipeline.transforms import Pixels, Transforms


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard, in order.

    `pixels` is uint8 [B, H, W, C] for the B rows in `good`; `sizes` their upright (width, height); `bad` the others,
    each with what is wrong with it. The caller had to wait `storage_s` until the rows were read, and then `decode_s`.
    """

    good: list[Row]
    sizes: list[tuple[int, int]]
    pixels: Pixels
    bad: list[tuple[Row, ImageError]]
    storage_s: float = 0.0
    decode_s: float = 0.0


Result = tuple[Pixels, tuple[int, int]] | ImageError
Decoder = Callable[[Row], Result]


def decoder(transforms: Transforms, max_pixels: int, exact: bool = True, budget: Budget | None = None) -> Decoder:
    """Return a function that turns a row into model input and its upright size, or into the error that it is.

    Parameters
    ----------
    exact : bool
        Only the reference decoder; else the fast one where it can, which differs in pixels a little and in no verdict.
    budget : Budget, optional
        What bounds the pictures in the decoder; default: only the number of threads.
    """
    room: Callable[[int], AbstractContextManager[None]] = budget.picture if budget else lambda _: nullcontext()
    resize = best_resize()

    def decode_row(row: Row) -> Result:
        if row.data is None:
            return row.error or ImageError("read", "null", "no data")
        try:
            with opened(row.data, max_pixels) as image:
                if not exact and is_fast(image, transforms):
                    with room(fast_bytes(image, transforms)):
                        found = fast_pixels(row.data, image, transforms, resize)
                    if found is not None:
                        return found
                with room(picture_bytes(image)):
                    decoded = finish(image, transforms.color)
                    return transforms.pixels(decoded.image), (decoded.width, decoded.height)
        except ImageError as error:
            return error

    return decode_row


def decoded_batches(
    chunks: Iterator[list[Row]], decode_row: Decoder, transforms: Transforms, threads: int, budget: Budget | None = None
) -> Iterator[Batch]:
    """Read and decode lists of rows ahead of the caller, as far as the budget goes (default: one of its own).

    Errors of reading (`chunks`) reach the caller as they are, after the batches before them; errors of one image are
    in its batch's `bad`. Asking for the next batch gives the last one's bytes back.
    """
    share, ready = Share(budget or Budget()), SimpleQueue[_Work | None]()
    with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as reader:
        try:
            reading = reader.submit(_read, chunks, decode_row, transforms, share, pool, ready)
            started = perf_counter()
            for work in iter(ready.get, None):
                read = perf_counter()
                results = [future.result() for future in work.futures]
                batch = _batch(work.rows, results, transforms)
                yield replace(batch, storage_s=read - started, decode_s=perf_counter() - read)
                share.give(work.num_bytes)
                started = perf_counter()
            reading.result()
        finally:  # the caller may have had enough: nothing more is read or decoded
            share.close()
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class _Work:
    rows: list[Row]
    futures: list[Future[Result]]
    num_bytes: int


def _read(
    chunks: Iterator[list[Row]], decode_row: Decoder, transforms: Transforms,
    share: Share, pool: ThreadPoolExecutor, ready: "SimpleQueue[_Work | None]",
) -> None:  # fmt: skip
    """Put rows and their decoding into `ready`, in order, as there is room for them; None at the end, whatever it is."""
    try:
        for rows in chunks:
            num_bytes = sum(len(row.data or b"") + transforms.num_bytes for row in rows)
            if not share.take(num_bytes):
                break
            ready.put(_Work(rows, [pool.submit(decode_row, row) for row in rows], num_bytes))
    finally:
        ready.put(None)
        if isinstance(chunks, Generator):
            chunks.close()


def _batch(rows: list[Row], results: list[Result], transforms: Transforms) -> Batch:
    good, sizes, pictures, bad = [], [], [], []
    for row, result in zip(rows, results, strict=True):
        if isinstance(result, ImageError):
            bad.append((row, result))
        else:
            good.append(row)
            pictures.append(result[0])
            sizes.append(result[1])
    shape = (0, transforms.crop_px, transforms.crop_px, transforms.num_channels)
    return Batch(good, sizes, np.stack(pictures) if pictures else np.empty(shape, np.uint8), bad)
