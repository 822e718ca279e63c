"""How right a model is in parts of the data: per value of a column of the input, with intervals."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.intervals import wilson

MOST_VALUES = 20  # of a column: more text is put together as OTHERS, more numbers are cut into quarters
FEWEST = 10  # images of a slice that can be called worse: of fewer each may be looked at
OTHERS, NOTHING = "(others)", "(none)"
QUARTERS = (0.25, 0.5, 0.75)


def sliced(table: pa.Table, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per column and value: images, how many of them are right, their share and its 95 % interval.

    `worse` says that chance alone would hardly bring it about: the intervals of the slice and of all other images lie apart,
    wide enough for as many slices as there are (C. Bonferroni's correction).
    """
    right = table["errors"].to_numpy() == 0
    named = {column: np.array(slice_names(table[column]), object) for column in columns}
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, sum(len(set(names)) for names in named.values())))
    return [row for column, names in named.items() for row in _slices(column, table[column], names, right, z)]


def _slices(
    column: str, values: pa.ChunkedArray, names: npt.NDArray[np.object_], right: npt.NDArray[np.bool_], z: float
) -> Iterator[dict[str, Any]]:
    total, hits = len(right), int(right.sum())
    for name in sorted(set(names), key=_order(values)):
        chosen = names == name
        count, correct = int(chosen.sum()), int(right[chosen].sum())
        worse = count >= FEWEST and wilson(correct, count, z)[1] < wilson(hits - correct, total - count, z)[0]
        yield {
            "column": column, "value": name, "num_images": count, "right": correct, "share": correct / count,
            "interval95": list(wilson(correct, count)), "worse": worse,
        }  # fmt: skip


def slice_type(name: str, kind: pa.DataType) -> pa.DataType:
    """Return the type in which values to slice by are kept: numbers, or text for all else; InputError for lists and the like."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise InputError(
            f"column {name!r} (evaluate.slices) has type {kind}; expected one value per image: text, a number, a date"
        )
    return pa.float64() if _is_number(kind) else pa.string()


def slice_names(values: pa.ChunkedArray) -> list[str]:
    """Return for each value the name of its slice."""
    values = pa.chunked_array([values.combine_chunks()])
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    text = [NOTHING if value is None else _text(value) for value in values.to_pylist()]
    if len(set(text)) <= MOST_VALUES:
        return text
    if _is_number(values.type):
        return _quarters(values.cast(pa.float64(), safe=False))
    common = pc.value_counts(pa.array(text)).to_pylist()
    kept = {row["values"] for row in sorted(common, key=lambda row: (-row["counts"], row["values"]))[:MOST_VALUES]}
    return [value if value in kept else OTHERS for value in text]


def _quarters(values: pa.ChunkedArray) -> list[str]:
    """Name numbers after the quarter that they lie in, its upper end not with it."""
    numbers = np.array(values.to_pylist(), np.float64)
    known = np.isfinite(numbers)
    cuts = np.unique(np.quantile(numbers[known], QUARTERS))
    ends = [_text(float(cut)) for cut in cuts]
    names = [f"below {ends[0]}", *(f"{a} to {b}" for a, b in pairwise(ends)), f"{ends[-1]} and more"]
    places = np.searchsorted(cuts, numbers, side="right")
    return [names[place] if there else NOTHING for place, there in zip(places, known, strict=True)]


def _text(value: Any) -> str:
    """Write a value so that other values read otherwise; whole numbers without a point."""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _order(values: pa.ChunkedArray) -> Any:
    """Return a key that sorts slices: numbers by size, text by name, what has no value last."""
    numeric = _is_number(values.type)

    def key(name: str) -> tuple[bool, bool, float, str]:
        first = name.removeprefix("below ").split(" ")[0]
        size = float(first) if numeric and name != NOTHING else 0.0
        return name in (NOTHING, OTHERS), not name.startswith("below "), size, name

    return key
