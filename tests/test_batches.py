import itertools
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline import batches
from pipeline.batches import decoded_batches, decoder
from pipeline.budget import Budget
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


def test_reading_stays_within_the_budget_and_no_more(png):
    taken = []
    size = len(png(0)) + GREY.num_bytes

    def chunks() -> Iterator[list[Row]]:
        for n in range(20):
            taken.append(n)
            yield [row(n, png(0))]

    budget = Budget(2 * (3 * size + size // 2))  # room for three that wait, the caller's one among them
    for used, _ in enumerate(decoded_batches(chunks(), decoder(GREY, 10_000), GREY, 1, budget), 1):
        assert len(taken) <= used + 3  # two more are ready, and one is read that has no room yet
    assert used == 20
    assert budget._waiting_bytes == 0


def test_images_larger_than_the_budget_pass_one_by_one(png):
    budget = Budget(10)
    decode_row = decoder(GREY, 10_000, budget=budget)
    out = list(decoded_batches(iter([[row(n, png(n))] for n in range(6)]), decode_row, GREY, 3, budget))
    assert [batch.good[0].image_id for batch in out] == list(range(6))


def test_a_caller_who_leaves_stops_reading_and_gives_everything_back(png):
    budget, closed, before = Budget(), threading.Event(), set(threading.enumerate())

    def chunks() -> Iterator[list[Row]]:
        try:
            for n in itertools.count():
                yield [row(n, png(0))]
        finally:
            closed.set()

    out = decoded_batches(chunks(), decoder(GREY, 10_000), GREY, 2, budget)
    next(out)
    out.close()
    assert closed.is_set()
    assert set(threading.enumerate()) == before
    assert budget._waiting_bytes == 0


def test_an_error_of_the_caller_or_of_reading_leaves_no_thread_behind(png):
    budget, before = Budget(100), set(threading.enumerate())

    def chunks() -> Iterator[list[Row]]:
        yield [row(0, png(0))]
        raise TransientError("503")

    with pytest.raises(TransientError):
        list(decoded_batches(chunks(), decoder(GREY, 10_000), GREY, 2, budget))
    assert set(threading.enumerate()) == before
    assert budget._waiting_bytes == 0


def test_two_streams_that_one_thread_takes_in_turns_do_not_wait_for_each_other(png):
    budget = Budget(10)
    streams = [
        decoded_batches(
            iter([[row(n, png(n))] for n in range(5)]), decoder(GREY, 10_000, budget=budget), GREY, 1, budget
        )
        for _ in range(2)
    ]
    assert len(list(zip(*streams, strict=True))) == 5


@pytest.mark.parametrize("seed", range(6))
def test_chance_sizes_threads_and_budgets_end_with_every_row(png, seed, run_together):
    random_ = random.Random(seed)
    pictures = [png(n, (size, size)) for n, size in enumerate((8, 20, 60))]
    budget = Budget(random_.choice([1, 1000, 20_000, 10**6]))

    def stream() -> int:
        lists = [[row(n, random_.choice(pictures)) for n in range(random_.randint(1, 9))] for _ in range(25)]
        decode_row = decoder(GREY, 10_000, budget=budget)
        batches = decoded_batches(iter(lists), decode_row, GREY, random_.randint(1, 4), budget)
        return sum(len(batch.good) for batch in batches) - sum(len(rows) for rows in lists)

    assert run_together(stream, stream, stream) == [0, 0, 0]
    assert budget._waiting_bytes == budget._picture_bytes == 0


@pytest.mark.parametrize("exact", [True, False])
def test_a_bad_image_costs_that_image_only(png, exact):
    jpeg = png(1, (64, 64), "RGB", "JPEG")
    data = [jpeg, jpeg[: len(jpeg) // 2], b"", jpeg, b"<html>", png(2), jpeg[:-60]]
    rows = [row(n, one) for n, one in enumerate(data)]
    transforms = Transforms(16, 14)
    batch = next(decoded_batches(iter([rows]), decoder(transforms, 10_000, exact), transforms, 2))
    assert [one.image_id for one in batch.good] == [0, 3, 5]
    found = [(one.image_id, error.reason) for one, error in batch.bad]
    assert found == [(1, "truncated"), (2, "empty"), (4, "not_an_image"), (6, "truncated")]


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
    assert all(batch.storage_s > 0 and batch.decode_s > 0 for batch in run([[row(0, png())], [row(1, png())]]))
