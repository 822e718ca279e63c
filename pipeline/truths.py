"""What is known of an example's labels: one of the classes, or of a multi-label one which are there and which are not."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.classes import Classes

PRESENT, ABSENT, UNKNOWN = 1, 0, -1


class LabelSet(NamedTuple):
    """The labels that an image has, and those that it is known not to have: None for all others."""

    there: tuple[str, ...]
    absent: tuple[str, ...] | None = None


Label = str | LabelSet | None  # None: the image has no label at all, or nobody looked


def names_in(label: Label) -> tuple[str, ...]:
    """Return the classes that a label says are in the picture."""
    if isinstance(label, LabelSet):
        return label.there
    return () if label is None else (label,)


def contradicts_itself(label: Label) -> bool:
    """Say whether a label is both there and absent: then nothing is known of it."""
    return isinstance(label, LabelSet) and not set(label.there).isdisjoint(label.absent or ())


class LabelMatrix:
    """What is known of N multi-label examples, int8 [N, K] that is kept sparse; labels that are no class count for nothing."""

    def __init__(self, labels: Sequence[Label], classes: Classes) -> None:
        sets = [label if isinstance(label, LabelSet) else LabelSet((), ()) for label in labels]
        self._num_classes = len(classes)
        self._rest = np.array([ABSENT if label.absent is None else UNKNOWN for label in sets], np.int8)
        self._there = [_indices(label.there, classes) for label in sets]
        self._absent = [_indices(label.absent or (), classes) for label in sets]

    def __len__(self) -> int:
        return len(self._rest)

    def __getitem__(self, examples: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
        """Return the rows of these examples, int8 [B, K]."""
        rows = np.repeat(self._rest[examples, None], self._num_classes, axis=1)
        for row, example in zip(rows, examples, strict=True):
            there, absent = self._there[example], self._absent[example]
            row[absent] = ABSENT
            row[there] = PRESENT
            row[np.intersect1d(there, absent)] = UNKNOWN
        return rows


def _indices(names: Sequence[str], classes: Classes) -> npt.NDArray[np.int32]:
    return np.array([i for name in names if (i := classes.index_of(name)) is not None], np.int32)
