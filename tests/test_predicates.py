import io
from datetime import UTC, date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.predicates import excluded, matching

DAY = date(2026, 11, 24)
TEXT = ["9", "10", "x", "", " 1e1 ", "-3.5", None]
DAYS = [date(2026, 11, 23), DAY, None]
BIG = 2**63 + 1


@pytest.mark.parametrize(
    ("kind", "values", "operator", "value", "expected"),
    [
        (pa.int64(), [1, 2, 3, None], "=", 2, [2]),
        (pa.int64(), [1, 2, 3, None], "==", 2, [2]),
        (pa.int64(), [1, 2, 3, None], "!=", 2, [1, 3]),
        (pa.int64(), [1, 2, 3, None], "<=", 2.5, [1, 2]),
        (pa.int64(), [1, 2, 3, None], "in", (1, 3, 7), [1, 3]),
        (pa.int64(), [1, 2, 3, None], "not in", (1, 7), [2, 3]),
        (pa.int64(), [2**53, 2**53 + 1], "=", 2**53 + 1, [2**53 + 1]),
        (pa.int8(), [1, 100], "<", 1000, [1, 100]),
        (pa.uint64(), [0, BIG], "=", BIG, [BIG]),
        (pa.uint64(), [0, BIG], ">", -1, [0, BIG]),
        (pa.uint8(), [0, 255], ">=", 255, [255]),
        (pa.float32(), [0.5, float("nan"), None, 2.0], ">", 0, [0.5, 2.0]),
        (pa.float16(), [0.5, 2.0], ">", 1, [2.0]),
        (pa.decimal128(5, 2), [Decimal("1.50"), Decimal("2.50"), None], ">", 2, [Decimal("2.50")]),
        (pa.decimal128(5, 2), [Decimal("1.50"), Decimal("2.50"), None], "=", 1.5, [Decimal("1.50")]),
        (pa.bool_(), [True, False, None], "=", False, [False]),
        (pa.bool_(), [True, False, None], "!=", False, [True]),
        (pa.string(), ["a", "B", None], ">=", "a", ["a"]),
        (pa.large_string(), ["a", "B", None], "in", ("B", "c"), ["B"]),
        (pa.string_view(), ["a", "B", None], "not in", ("B", "c"), ["a"]),
        (pa.string(), TEXT, "=", "10", ["10"]),
        (pa.string(), TEXT, "=", 10, ["10", " 1e1 "]),
        (pa.string(), TEXT, "<", 9.5, ["9", "-3.5"]),
        (pa.string(), TEXT, "!=", 10, ["9", "-3.5"]),
        (pa.string(), ["True", "false", "yes"], "=", True, ["True"]),
        (pa.string(), ["2026-11-24", "2026-11-24T01:00", "zzz", None], ">=", DAY, ["2026-11-24", "2026-11-24T01:00"]),
        (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a", None], "=", "a", ["a", "a"]),
        (pa.date32(), DAYS, "=", "2026-11-24", [DAY]),
        (pa.date32(), DAYS, "<", DAY, DAYS[:1]),
        (pa.date64(), DAYS, "in", (DAY, "2026-11-25"), [DAY]),
        (pa.timestamp("us"), [datetime(2026, 11, 24), datetime(2026, 11, 23, 23)], ">=", DAY, [datetime(2026, 11, 24)]),
        (pa.timestamp("s"), [datetime(2026, 11, 24, 6)], "=", "2026-11-24T06:00:00", [datetime(2026, 11, 24, 6)]),
        (pa.timestamp("s"), [datetime(2026, 11, 24, 6)], "=", "2026-11-24T08:00:00+02:00", [datetime(2026, 11, 24, 6)]),
        (pa.timestamp("ms", "UTC"), [datetime(2026, 11, 24, tzinfo=UTC)], "=", DAY, [datetime(2026, 11, 24, tzinfo=UTC)]),
        (pa.null(), [None, None], "!=", "x", []),
        (pa.null(), [None, None], "not in", (1, 2), []),
    ],
)  # fmt: skip
def test_a_predicate_holds_for(kind, values, operator, value, expected):
    column = pa.array(values, kind.value_type if pa.types.is_dictionary(kind) else kind).cast(kind)
    for given in (column, pa.chunked_array([column[:1], column[1:]])):
        mask = matching(given, ("c", operator, value))
        assert mask.null_count == 0
        assert [v for v, holds in zip(given.to_pylist(), mask.to_pylist(), strict=True) if holds] == expected
    assert len(matching(column[:0], ("c", operator, value))) == 0


@pytest.mark.parametrize(
    ("kind", "operator", "value", "advice"),
    [
        (pa.int64(), "=", "1", "give a number, without quotes"),
        (pa.int64(), "=", True, "give a number"),
        (pa.int64(), "<", DAY, "give a number"),
        (pa.float64(), "in", (1.5, "x"), "give a number"),
        (pa.bool_(), "=", 1, "give true or false"),
        (pa.bool_(), "=", "true", "give true or false"),
        (pa.date32(), "<", "yesterday", "give a date as 2026-11-24"),
        (pa.date32(), "<", 20261124, "give a date"),
        (pa.timestamp("us"), "<", 5, "give a date"),
        (pa.string(), "=", 2**60, "write the value in quotes"),
        (pa.binary(), "=", "x", "filter on a column of text"),
        (pa.list_(pa.int64()), "=", 1, "filter on a column of text"),
        (pa.struct([("a", pa.int64())]), "!=", 1, "filter on a column of text"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_before_any_row_is_read(kind, operator, value, advice):
    with pytest.raises(InputError, match=f"input.filter: column 'c' has type .*{advice}"):
        matching(pa.nulls(0, kind), ("c", operator, value))


def statistics(column: pa.Array):
    sink = io.BytesIO()
    pq.write_table(pa.table({"c": column}), sink)
    return pq.ParquetFile(sink).metadata.row_group(0).column(0).statistics


@pytest.mark.parametrize(
    ("values", "kind", "operator", "value"),
    [
        ([3, 5, None], pa.int64(), "=", 6),
        ([3, 5, None], pa.int64(), "==", 2),
        ([3, 5], pa.int64(), "<", 3),
        ([3, 5], pa.int64(), "<=", 2.5),
        ([3, 5], pa.int64(), ">", 5),
        ([3, 5], pa.int64(), ">=", 6),
        ([3, 5], pa.int64(), "in", (1, 2, 9)),
        (["b", "d"], pa.string(), "=", "e"),
        (["b", "d"], pa.string(), "<", "a"),
        (DAYS, pa.date32(), ">", "2026-11-24"),
        ([datetime(2026, 11, 24)], pa.timestamp("us"), "<", DAY),
        ([False, False], pa.bool_(), "=", True),
        ([Decimal("1.50")], pa.decimal128(5, 2), ">", 2),
    ],
)
def test_statistics_rule_out(values, kind, operator, value):
    column = pa.array(values, kind)
    assert excluded(statistics(column), kind, ("c", operator, value))
    assert not any(matching(column, ("c", operator, value)).to_pylist())


@pytest.mark.parametrize(
    ("values", "kind", "operator", "value"),
    [
        ([3, 5], pa.int64(), "=", 4),  # may be there
        ([3, 5], pa.int64(), "<", 4),
        ([3, 5], pa.int64(), "!=", 3),
        ([3, 3], pa.int64(), "not in", (3,)),  # false, but the statistics are not asked
        ([3, 5], pa.int64(), "in", (1, 5)),
        (["10", "2"], pa.string(), "=", 9),  # numbers in text do not stand in order
        ([float("nan"), 1.0], pa.float64(), "=", 1),
        ([None, None], pa.int64(), "=", 3),
    ],
)
def test_statistics_do_not_rule_out(values, kind, operator, value):
    assert not excluded(statistics(pa.array(values, kind)), kind, ("c", operator, value))


def test_without_statistics_nothing_is_ruled_out():
    assert not excluded(None, pa.int64(), ("c", "=", 3))
