"""From which probability on a multi-label model says a class: fitted on validation images, sealed in the bundle."""

import numpy as np
import numpy.typing as npt

from pipeline.precisions import Known, Scores, hits_at
from pipeline.truths import PRESENT, UNKNOWN

DEFAULT = 0.5
# A threshold that only a few images speak for fits these and no others: such classes share one.
FEWEST = 5


def fit_thresholds(probabilities: Scores, known: Known) -> tuple[float, ...]:
    """Return K thresholds, each with the highest F1 on its class, of probabilities [N, K] and what is known [N, K].

    Classes with fewer than `FEWEST` images share the one with the highest F1 over all classes together; without any image
    with a label, all are 0.5.
    """
    is_known = known != UNKNOWN
    shared = _best(probabilities[is_known], known[is_known] == PRESENT)
    columns = zip(probabilities.T, known.T, is_known.T, strict=True)
    return tuple(
        _best(column[use], truth[use] == PRESENT) if (truth == PRESENT).sum() >= FEWEST else shared
        for column, truth, use in columns
    )


def _best(scores: Scores, there: npt.NDArray[np.bool_]) -> float:
    """Return the threshold with the highest F1 = 2 TP / (predicted + support), the highest of several.

    It lies in the middle between two scores, so that a rounding elsewhere changes no label.
    """
    if not there.any():
        return DEFAULT
    found, taken = hits_at(scores, there)
    place = int(np.argmax(2 * found / (taken + found[-1])))
    distinct = np.append(np.unique(scores)[::-1], 0.0)
    return float(f"{(distinct[place] + distinct[place + 1]) / 2:.6g}")
