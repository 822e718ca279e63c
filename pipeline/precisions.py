"""Average precision: how well scores put the images that have a label before those that have not."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.truths import PRESENT, UNKNOWN

Scores = npt.NDArray[np.floating]
Known = npt.NDArray[np.int8]


def average_precision(scores: Scores, there: npt.NDArray[np.bool_]) -> float | None:
    """Return the average precision of N scores, None when no image has the label.

    Notes
    -----
    AP = sum over distinct scores of (R_n - R_(n-1)) P_n, the step-wise area under precision against recall, without
    interpolation; equal scores are one step. M. Zhu, "Recall, precision and average precision" (2004).
    """
    if not there.any():
        return None
    found, taken = hits_at(scores, there)
    recall = found / found[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * found / taken))


def average_precisions(scores: Scores, known: Known) -> list[float | None]:
    """Return the average precision of each class, of scores [N, K] and what is known [N, K]; the unknown is left out."""
    columns = zip(scores.T, known.T, strict=True)
    return [
        average_precision(column[truth != UNKNOWN], truth[truth != UNKNOWN] == PRESENT) for column, truth in columns
    ]


def mean_average_precision(precisions: Sequence[float | None]) -> float | None:
    """Return the mean over the classes that have an image, None when none has."""
    present = [value for value in precisions if value is not None]
    return float(np.mean(present)) if present else None


def hits_at(scores: Scores, there: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return for each distinct score, from the highest, how many images with the label, and how many in all, reach it."""
    order = np.argsort(-scores, kind="stable")
    last_of_equals = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    return np.cumsum(there[order])[last_of_equals], last_of_equals + 1
