import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.errors import InputError
from pipeline.intervals import wilson
from pipeline.slices import MOST_VALUES, NOTHING, OTHERS, slice_type, sliced


def table(values, errors) -> pa.Table:
    return pa.table({"errors": pa.array(errors, pa.int32()), "x": values})


def test_a_slice_is_what_its_rows_say():
    values = ["day"] * 6 + ["night"] * 3 + [None]
    errors = [0, 0, 0, 2, 0, 0, 1, 1, 0, 0]
    found = {row["value"]: row for row in sliced(table(values, errors), ["x"])}
    assert {name: (row["num_images"], row["right"]) for name, row in found.items()} == {
        "day": (6, 5), "night": (3, 1), NOTHING: (1, 1),
    }  # fmt: skip
    assert found["night"]["share"] == 1 / 3
    assert found["night"]["interval95"] == list(wilson(1, 3))
    assert [row["value"] for row in sliced(table(values, errors), ["x"])][-1] == NOTHING  # what has no value comes last


def test_a_slice_is_worse_only_where_chance_hardly_explains_it():
    values = ["a"] * 100 + ["b"] * 100 + ["c"] * 4
    errors = [0] * 95 + [1] * 5 + [0] * 60 + [1] * 40 + [1] * 2 + [0] * 2
    assert {row["value"]: row["worse"] for row in sliced(table(values, errors), ["x"])} == {
        "a": False, "b": True, "c": False,
    }  # fmt: skip
    assert not sliced(table(["a"] * 5, [1] * 5), ["x"])[0]["worse"]  # there are no others


def test_among_many_slices_some_look_bad_by_chance():
    random = np.random.default_rng(0)
    values, errors = [str(i % 20) for i in range(2000)], (random.random(2000) < 0.1).astype(int)
    assert not any(row["worse"] for row in sliced(table(values, errors), ["x"]))
    single = [*["1"] * 1, *["2"] * 200]
    assert not any(row["worse"] for row in sliced(table(single, [1] + [0] * 200), ["x"]))


def test_many_numbers_are_cut_into_quarters():
    numbers = np.arange(100.0)
    rows = sliced(table([*numbers, None], [0] * 101), ["x"])
    assert [row["value"] for row in rows] == [
        "below 24.75",
        "24.75 to 49.5",
        "49.5 to 74.25",
        "74.25 and more",
        NOTHING,
    ]
    assert [row["num_images"] for row in rows] == [25, 25, 25, 25, 1]


@pytest.mark.parametrize("numbers", [[1] * 90 + list(range(30)), [0.0] * 5 + [1e-9 * i for i in range(30)]])
def test_skewed_numbers_are_cut_where_they_differ(numbers):
    rows = sliced(table(pa.array(numbers), [0] * len(numbers)), ["x"])
    assert sum(row["num_images"] for row in rows) == len(numbers)
    assert len({row["value"] for row in rows}) == len(rows) <= 4


def test_few_numbers_are_their_own_slices_in_order():
    rows = sliced(table([10, 9, 9, 100], [0, 0, 1, 0]), ["x"])
    assert [row["value"] for row in rows] == ["9", "10", "100"]


def test_much_text_is_put_together():
    values = [f"v{i:02}" for i in range(30) for _ in range(i + 1)]
    rows = sliced(table(values, [0] * len(values)), ["x"])
    assert len(rows) == MOST_VALUES + 1
    assert rows[-1]["value"] == OTHERS
    assert rows[-1]["num_images"] == sum(range(1, 11))


@pytest.mark.parametrize(
    "values",
    [
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([True, False, True]),
        pa.array([1, 2, 1], pa.decimal128(5, 2)),
        pa.chunked_array([["a"], ["b", "a"]]),
        pc.strptime(pa.array(["2026-11-24", "2026-11-25", "2026-11-24"]), "%Y-%m-%d", "s"),
    ],
    ids=str,
)
def test_columns_of_any_type_can_be_sliced_by(values):
    assert sorted(row["num_images"] for row in sliced(table(values, [0, 1, 0]), ["x"])) == [1, 2]


def test_large_numbers_keep_their_ends_apart():
    days = [20261101 + i % 28 for i in range(280)]
    rows = sliced(table(pa.array(days, pa.float64()), [0] * 280), ["x"])
    assert next(row["value"] for row in rows) == "below 20261107.75"
    assert [row["num_images"] for row in rows] == [70] * 4
    huge = [2**60 + i for i in range(40)]
    assert sum(row["num_images"] for row in sliced(table(huge, [0] * 40), ["x"])) == 40


def test_what_is_no_number_has_no_quarter():
    rows = sliced(table([float(i) for i in range(30)] + [float("nan"), float("inf")], [0] * 32), ["x"])
    assert rows[-1]["value"] == NOTHING
    assert rows[-1]["num_images"] == 2


@pytest.mark.parametrize("kind", [pa.list_(pa.int8()), pa.struct([("a", pa.int8())]), pa.binary()], ids=str)
def test_types_without_single_values_are_refused(kind):
    with pytest.raises(InputError, match="expected one value per image"):
        slice_type("x", kind)


def test_numbers_stay_numbers_and_all_else_is_text():
    kinds = (
        pa.int64(),
        pa.float16(),
        pa.decimal128(5, 2),
        pa.bool_(),
        pa.date32(),
        pa.dictionary(pa.int8(), pa.string()),
    )
    assert [slice_type("x", kind) for kind in kinds] == [pa.float64()] * 3 + [pa.string()] * 3
