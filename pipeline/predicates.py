"""Predicates [column, op, value]: which values they hold for. Null never matches, as in SQL.

One rule for every kind of column: a value is compared as what it is. Text compares with a number as the number that it
spells and with a date as the date that it begins with, so CSV columns and Hive partitions compare as people expect;
text that spells neither does not match.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.settings import Predicate, Scalar

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal, "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater,
    ">=": pc.greater_equal,
}  # fmt: skip
NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
DAY = r"^\d{4}-\d\d-\d\d"
EXACT_FLOAT = 2**53  # larger whole numbers have neighbours that are the same float64


def matching(column: Any, predicate: Predicate) -> Any:
    """Return per value of a column whether the predicate holds, as booleans without nulls.

    Raises
    ------
    InputError
        When the value cannot be compared with the column's type; also for a column without rows.
    """
    name, operator, value = predicate
    if isinstance(value, tuple):
        one, join = ("=", pc.or_) if operator == "in" else ("!=", pc.and_)
        return reduce(join, [matching(column, (name, one, member)) for member in value])  # type: ignore[arg-type]
    try:
        values, operand = _common(column, value)
        return pc.fill_null(COMPARE[operator](values, operand), False)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"input.filter: column {name!r} has type {column.type}, which {operator} {value!r} cannot be compared with; "
            f"{_advice(column.type)}"
        ) from error


def excluded(statistics: Any, kind: pa.DataType, predicate: Predicate) -> bool:
    """Say whether a row group's statistics rule out that any of its values matches; False when they do not tell."""
    _, operator, value = predicate
    if isinstance(value, tuple):
        return operator == "in" and all(excluded(statistics, kind, (predicate[0], "=", one)) for one in value)
    if statistics is None or not statistics.has_min_max or operator == "!=":
        return False
    if is_text(kind) and not isinstance(value, str):  # "9" stands after "10"
        return False
    if statistics.min != statistics.min:  # NaN: some writers take it for a bound
        return False
    # The smallest value, the largest, or both must hold for some value between them to match.
    bounds = {"<": "<", "<=": "<=", "=": "<=", "==": "<="}, {">": ">", ">=": ">=", "=": ">=", "==": ">="}
    try:
        return not all(
            matching(pa.array([bound], kind), (predicate[0], needed[operator], value))[0].as_py()  # type: ignore[arg-type]
            for bound, needed in zip((statistics.min, statistics.max), bounds, strict=True)
            if operator in needed
        )
    except (pa.ArrowException, InputError, TypeError, ValueError, OverflowError):
        return False


def _common(column: Any, value: Scalar) -> tuple[Any, Any]:
    """Return the column and the value as two things that Arrow compares exactly."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _common(column.cast(kind.value_type), value)
    if pa.types.is_null(kind):
        return column.cast(pa.string()), pa.scalar(str(value))
    if is_text(kind):
        return _text(column.cast(pa.large_string()), value)
    if isinstance(value, bool) or pa.types.is_boolean(kind):
        return column, pa.scalar(value, pa.bool_())
    if _is_number(kind) and isinstance(value, int | float):
        return _numbers(column, value)
    if pa.types.is_date(kind):
        return column.cast(pa.date32()), pa.scalar(_day(value), pa.date32())
    if pa.types.is_timestamp(kind):
        return column, pa.scalar(_moment(value, kind), kind)
    raise TypeError(f"{kind} and {value!r}")


def _text(column: Any, value: Scalar) -> tuple[Any, Any]:
    if isinstance(value, bool):
        return pc.utf8_lower(column), pa.scalar(str(value).lower(), pa.large_string())
    if isinstance(value, int | float):
        if abs(value) > EXACT_FLOAT:
            raise ValueError(f"{value} is not exact as a number; write it in quotes")
        return _where(column, NUMBER, pc.utf8_trim_whitespace).cast(pa.float64()), pa.scalar(float(value))
    if isinstance(value, date):
        return _where(column, DAY, lambda text: text), pa.scalar(value.isoformat(), pa.large_string())
    return column, pa.scalar(value, pa.large_string())


def _where(column: Any, pattern: str, change: Callable[[Any], Any]) -> Any:
    """Return the changed values that match the pattern, null for the others."""
    return pc.if_else(pc.match_substring_regex(column, pattern), change(column), pa.scalar(None, pa.large_string()))


def _numbers(column: Any, value: float) -> tuple[Any, Any]:
    kind = column.type
    if isinstance(value, int) and pa.types.is_integer(kind):
        with suppress(pa.ArrowInvalid, OverflowError):  # outside of what the type can hold, as -1 of unsigned
            return column, pa.scalar(value, kind)
    if pa.types.is_decimal(kind) and isinstance(value, int):
        return column, pa.scalar(Decimal(value))
    return column.cast(pa.float64(), safe=False), pa.scalar(float(value))


def _day(value: Scalar) -> date:
    """Return a date; ISO text is one as well."""
    if isinstance(value, date):
        return value
    return date.fromisoformat(_iso(value))


def _moment(value: Scalar, kind: Any) -> datetime:
    """Return a moment with or without time zone, as the column has it; a date is its first moment, in UTC."""
    moment = datetime(value.year, value.month, value.day) if isinstance(value, date) else None
    moment = moment or datetime.fromisoformat(_iso(value))
    if kind.tz is None:
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _iso(value: Scalar) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no date")
    return value


def is_text(kind: pa.DataType) -> bool:
    """Say whether a column holds text, however it is laid out."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _advice(kind: pa.DataType) -> str:
    """Say what could be compared instead."""
    if pa.types.is_boolean(kind):
        return "give true or false, with =, !=, in or not in"
    if _is_number(kind):
        return "give a number, without quotes"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "give a date as 2026-11-24 or a time as '2026-11-24T06:00:00'"
    if is_text(kind):
        return "write the value in quotes"
    return "filter on a column of text, numbers, booleans or dates"
