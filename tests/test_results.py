import numpy as np
import pyarrow as pa
import pytest

from pipeline.batches import Batch
from pipeline.errors import ImageError
from pipeline.results import Answers, Results, best
from pipeline.rows import Row
from pipeline.schema import prediction_schema, table_of

NAMES = ("ant", "bee", "cat")


def row(number: int, data: bytes | None = b"bytes") -> Row:
    return Row(number, f"file#{number}", "one" if number < 3 else "two", number, data)


def batch(numbers, bad=()) -> Batch:
    good = [row(n) for n in numbers]
    return Batch(good, [(10 + n, 20 + n) for n in numbers], np.empty((len(good), 2, 2, 1), np.uint8), list(bad))


def gathered(*batches: tuple[Batch, list[list[float]]], top_k: int = 2) -> Results:
    results = Results("tiny@1", NAMES)
    for one, probabilities in batches:
        results.add(one, best(np.array(probabilities, np.float32).reshape(-1, 3), top_k))
    return results


@pytest.mark.parametrize(
    ("probabilities", "top_k", "order"),
    [
        ([0.2, 0.5, 0.3], 3, [1, 2, 0]),
        ([0.4, 0.2, 0.4], 2, [0, 2]),
        ([1 / 3] * 3, 3, [0, 1, 2]),
        ([0, 0, 1], 1, [2]),
        ([0, 0, 1], 3, [2, 0, 1]),
        ([0.1] * 40, 17, list(range(17))),
        ([0.1] * 39 + [0.2], 20, [39, *range(19)]),
    ],
)
def test_best_comes_first_and_ties_go_to_the_lower_index(probabilities, top_k, order):
    answers = best(np.array([probabilities], np.float32), top_k)
    assert answers.indices.tolist() == [order]
    assert answers.probabilities[0].tolist() == pytest.approx([probabilities[i] for i in order])


@pytest.mark.parametrize("top_k", [1, 5, 16, 17, 100])
def test_best_is_what_sorting_all_of_them_gives(top_k):
    random = np.random.default_rng(top_k)
    probabilities = random.integers(0, 40, (50, 100)).astype(np.float32) / 40  # many ties
    before = probabilities.copy()
    answers = best(probabilities, top_k)
    assert np.array_equal(answers.indices, np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k])
    assert np.array_equal(answers.probabilities, np.take_along_axis(probabilities, answers.indices, 1))
    assert np.array_equal(probabilities, before)


def test_label_table_is_that_of_the_rows_one_by_one():
    results = gathered((batch([0, 1]), [[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]]), (batch([3]), [[0.2, 0.2, 0.6]]))
    tops = [[(1, 0.7), (2, 0.2)], [(0, 0.5), (2, 0.4)], [(2, 0.6), (0, 0.2)]]
    rows = [
        {
            "image_id": n, "uri": f"file#{n}", "label": NAMES[top[0][0]], "class_index": top[0][0], "confidence": top[0][1],
            "top_k": [{"label": NAMES[i], "class_index": i, "probability": p} for i, p in top], "width": 10 + n,
            "height": 20 + n, "model": "tiny@1", "content_hash": row(n).content_hash, "segment": row(n).segment,
        }
        for n, top in zip([0, 1, 3], tops, strict=True)
    ]  # fmt: skip
    table = results.labels(pa.int64())
    assert table.equals(table_of(rows, prediction_schema(pa.int64())), check_metadata=True)
    table.validate(full=True)


def test_counts_are_those_of_the_tables():
    broken = (row(2), ImageError("decode", "damaged", "no end"))
    results = gathered((batch([0, 1], [broken]), [[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]]), (batch([3]), [[0.2, 0.8, 0]]))
    labelled, quarantined = results.count_segments()
    assert labelled == {"one": 2, "two": 1}
    assert quarantined == {"one": 1}
    assert results.count_classes() == {"0": 1, "1": 2}
    assert sum(results.count_confidences()) == results.labels(pa.int64()).num_rows == 3
    assert results.count_confidences()[10] == 1
    assert results.quarantine(pa.int64()).to_pylist() == [
        {
            "image_id": 2, "uri": "file#2", "stage": "decode", "reason": "damaged", "error_type": "ImageError",
            "message": "no end", "content_hash": row(2).content_hash, "segment": "one",
        }
    ]  # fmt: skip


def test_batches_without_a_good_row_and_no_batch_at_all_make_empty_tables():
    broken = (row(2, b""), ImageError("decode", "empty", ""))
    for results in (Results("tiny@1", NAMES), gathered((batch([], [broken]), []))):
        table = results.labels(pa.string())
        assert table.num_rows == 0
        assert table.schema.equals(prediction_schema(pa.string()), check_metadata=True)
        assert (results.count_classes(), sum(results.count_confidences())) == ({}, 0)


def test_an_empty_batch_before_a_full_one_changes_nothing():
    results = gathered((batch([]), []), (batch([0]), [[0.1, 0.7, 0.2]]))
    assert results.labels(pa.int64())["label"].to_pylist() == ["bee"]


def test_results_keep_no_image_bytes():
    import gc

    results, kept = Results("tiny@1", NAMES), row(0, bytes(10_000))
    one = Batch([kept], [(1, 1)], np.empty((1, 2, 2, 1), np.uint8), [])
    results.add(one, Answers(np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)))
    holders = [holder for holder in gc.get_referrers(kept) if holder is not one.good]
    assert not [holder for holder in holders if isinstance(holder, (list, dict)) and holder is not globals()]
