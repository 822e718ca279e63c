import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline import batches
from pipeline.batches import decoded_batches, decoder
from pipeline.errors import ImageError, TransientError
from pipeline.rows import Row
from pipeline.transforms import Transforms

GREY = Transforms(8, 8, "L", (0.5,), (0.5,))


def row(number: int, data: bytes | None, error: ImageError | None = None) -> Row:
    return Row(number, f"file#{number}", "segment", number, data, error)


def run(chunks, threads: int = 2, transforms: Transforms = GREY):
    return list(decoded_batches(iter(chunks), decoder(transforms, 10_000), transforms, threads))


def test_every_row_comes_out_once_and_in_order(png):
    rows = [row(n, png(n) if n % 3 else b"not an image") for n in range(20)]
    out = run([rows[:7], rows[7:8], rows[8:]])
    assert [r.image_id for batch in out for r in batch.good] == [n for n in range(20) if n % 3]
    assert [r.image_id for batch in out for r, _ in batch.bad] == [n for n in range(20) if not n % 3]
    assert [len(batch.good) + len(batch.bad) for batch in out] == [7, 1, 12]


def test_pixels_and_sizes_belong_to_the_good_rows(png):
    batch = run([[row(0, b""), row(1, png(1, (8, 8))), row(2, png(2, (16, 12)))]])[0]
    assert batch.sizes == [(8, 8), (16, 12)]
    assert batch.pixels.shape == (2, 8, 8, 1)
    assert batch.pixels.dtype == np.uint8
    assert np.array_equal(batch.pixels, np.concatenate([run([[r]])[0].pixels for r in batch.good]))


@pytest.mark.parametrize(("color", "channels"), [("L", 1), ("RGB", 3)])
def test_batch_without_a_good_row_has_empty_pixels_of_the_right_shape(color, channels):
    batch = run([[row(0, b"")]], transforms=Transforms(8, 6, color, (0.5,) * channels, (0.5,) * channels))[0]
    assert batch.pixels.shape == (0, 6, 6, channels)
    assert len(batch.bad) == 1


def test_row_without_data_keeps_the_reason_that_the_reader_gave():
    given = ImageError("read", "not_found", "gone")
    (_, first), (_, second) = run([[row(0, None, given), row(1, None)]])[0].bad
    assert first is given
    assert (second.stage, second.reason) == ("read", "null")


def test_nothing_in_nothing_out():
    assert run([]) == []


def test_the_next_rows_are_read_while_the_caller_works(png):
    second_is_read = threading.Event()

    def chunks() -> Iterator[list[Row]]:
        yield [row(0, png(0))]
        second_is_read.set()
        yield [row(1, png(1))]

    out = decoded_batches(chunks(), decoder(GREY, 10_000), GREY, 1)
    next(out)
    assert second_is_read.wait(timeout=30)
    assert len(list(out)) == 1


def test_rows_are_decoded_in_several_threads_at_once():
    together = threading.Barrier(3)

    def meet(row: Row):
        together.wait(timeout=30)  # passes only when three rows are decoded at the same time
        return ImageError("decode", "damaged", "")

    assert len(next(decoded_batches(iter([[row(n, b"") for n in range(3)]]), meet, GREY, 3)).bad) == 3


def test_errors_of_reading_reach_the_caller(png):
    def chunks() -> Iterator[list[Row]]:
        for n in range(4):
            yield [row(n, png(n))]
        raise TransientError("503")

    seen = []
    with pytest.raises(TransientError, match="503"):
        seen.extend(batch.good[0].image_id for batch in decoded_batches(chunks(), decoder(GREY, 10_000), GREY, 2))
    assert seen == list(range(len(seen)))


def test_memory_error_of_the_decoder_is_not_a_bad_row(png, monkeypatch):
    def starved(*arguments):
        raise MemoryError

    monkeypatch.setattr(batches, "finish", starved)
    with pytest.raises(MemoryError):
        run([[row(0, png())]])


def test_wait_is_counted_per_batch(png):
    assert all(batch.wait_s > 0 for batch in run([[row(0, png())], [row(1, png())]]))
