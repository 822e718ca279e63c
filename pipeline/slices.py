"""How right a model is in parts of the data: per value of a column of the input, with intervals."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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


def slice_names(values: pa.ChunkedArray) -> list[str]:
    """Return for each value the name of its slice."""
    values = pa.chunked_array([values.combine_chunks()])
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if len(pc.unique(values)) <= MOST_VALUES:
        return [NOTHING if value is None else str(value) for value in values.to_pylist()]
    if _is_number(values.type):
        return _quarters(values.cast(pa.float64()))
    text = [NOTHING if value is None else str(value) for value in values.to_pylist()]
    common = pc.value_counts(pa.array(text)).to_pylist()
    kept = {row["values"] for row in sorted(common, key=lambda row: (-row["counts"], row["values"]))[:MOST_VALUES]}
    return [value if value in kept else OTHERS for value in text]


def _quarters(values: pa.ChunkedArray) -> list[str]:
    """Name numbers after the quarter that they lie in, its upper end not with it."""
    numbers = np.array(values.to_pylist(), np.float64)
    known = ~np.isnan(numbers)
    cuts = np.unique(np.quantile(numbers[known], QUARTERS))
    ends = [f"{cut:g}" for cut in cuts]
    names = [f"below {ends[0]}", *(f"{a} to {b}" for a, b in pairwise(ends)), f"{ends[-1]} and more"]
    places = np.searchsorted(cuts, numbers, side="right")
    return [names[place] if there else NOTHING for place, there in zip(places, known, strict=True)]


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
