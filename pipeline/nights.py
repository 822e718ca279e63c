"""What a night brought, in sums, and how far it is from the nights before it.

Labels are compared by the population stability index, the sum over classes of (a - e) ln(a / e) for shares a of this night
and e of the others (Siddiqi, Credit Risk Scorecards, 2006), each count half a row up so that no share is 0. With many classes
and few images it is large by chance alone; so it counts only above what 99 of 100 draws of both nights from one
distribution stay below.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.checksettings import CheckSettings
from pipeline.counts import Counts
from pipeline.documents import Document
from pipeline.ledger import LedgerEntry

DRAWS, QUANTILE, SEED = 200, 0.99, 7
FEWEST_NIGHTS = 3  # before there is a median that one large night does not make
SIGMAS = 3.0  # a shift of the mean confidence that is smaller than so many standard errors is chance
MOVED = 5  # labels that a reason names


@dataclass(frozen=True)
class Night:
    """Sums over some shards: images, labelled rows by class index, and by twentieth of the confidence."""

    images_in: int
    quarantined: int
    classes: Mapping[str, int]
    confidences: Sequence[int]

    @property
    def labelled(self) -> int:
        """Rows with a confidence."""
        return sum(self.confidences)

    @property
    def mean_confidence(self) -> float | None:
        """Mean of the top probability, to within half a twentieth; None without labels."""
        return self._moments[0] if self.labelled else None

    @property
    def _moments(self) -> tuple[float, float]:
        middles = (np.arange(len(self.confidences)) + 0.5) / len(self.confidences)
        weights = np.asarray(self.confidences) / self.labelled
        mean = float(weights @ middles)
        return mean, float(weights @ (middles - mean) ** 2)

    @property
    def variance(self) -> float:
        """Variance of the top probability."""
        return self._moments[1] if self.labelled else 0.0

    def to_json(self) -> Document:
        """Return what a run's record keeps."""
        return {
            "images_in": self.images_in, "quarantined": self.quarantined, "classes": dict(self.classes),
            "confidences": list(self.confidences),
        }  # fmt: skip


def night_of(entries: Iterable[LedgerEntry]) -> Night:
    """Return the sums of committed shards."""
    entries = list(entries)
    counts = sum((entry.counts for entry in entries), Counts())
    classes: Counter[str] = Counter()
    for entry in entries:
        classes.update(entry.classes)
    bins = [sum(twentieth) for twentieth in zip(*(e.confidences for e in entries if e.confidences), strict=True)]
    return Night(counts.images_in, counts.quarantined, dict(classes), bins)


def night_from_json(document: Document) -> Night:
    """Return the night that a run's record holds."""
    return Night(document["images_in"], document["quarantined"], document["classes"], document["confidences"])


def by_date(records: Sequence[Document]) -> list[Night]:
    """Return the nights of runs' records, oldest first: what the runs of one date brought is one night."""
    nights: dict[str, list[Night]] = {}
    for record in records:
        date = str(record.get("date") or str(record["started_at"])[:10])
        nights.setdefault(date, []).append(night_from_json(record["night"]))
    return [together(runs) for runs in nights.values()]


def together(nights: Sequence[Night]) -> Night:
    """Return the sums of several nights."""
    classes: Counter[str] = Counter()
    for night in nights:
        classes.update(night.classes)
    bins = [sum(twentieth) for twentieth in zip(*(n.confidences for n in nights if n.confidences), strict=True)]
    images, bad = sum(night.images_in for night in nights), sum(night.quarantined for night in nights)
    return Night(images, bad, dict(classes), bins)


def compare(
    night: Night, before: Sequence[Night], settings: CheckSettings, names: Mapping[str, str] | None = None
) -> Document:
    """Measure a night against those before it. A figure is None where there is nothing to compare, or too little.

    Parameters
    ----------
    names : Mapping[str, str], optional
        Of the class indices.

    Returns
    -------
    Document
        `nights` compared with, `volume` as a multiple of their median, `bad` (share) and `bad_before`, `psi` and the
        `psi_noise` that chance alone reaches, `confidence`, `confidence_before` and `confidence_noise`, and `moved`: the
        classes whose share changed most, each with its share before and now.
    """
    reference = together(before)
    typical = median([other.images_in for other in before]) if len(before) >= FEWEST_NIGHTS else 0
    found: Document = {
        "nights": len(before),
        "images_in": night.images_in,
        "volume": night.images_in / typical if typical else None,
        "bad": night.quarantined / night.images_in if night.images_in else None,
        "bad_before": reference.quarantined / reference.images_in if reference.images_in else None,
        "psi": None, "psi_noise": None, "moved": [],
        "confidence": night.mean_confidence, "confidence_before": reference.mean_confidence, "confidence_noise": None,
    }  # fmt: skip
    if min(night.labelled, reference.labelled) < settings.min_images:
        return found
    errors = night.variance / night.labelled + reference.variance / reference.labelled
    found["confidence_noise"] = round(SIGMAS * math.sqrt(errors), 4)
    keys = sorted({*night.classes, *reference.classes})
    counts = [np.array([side.classes.get(key, 0) for key in keys], np.int64) for side in (reference, night)]
    if not all(side.sum() for side in counts):  # images of which a multi-label model says nothing
        return found
    found["psi"] = round(float(stability(*counts)), 4)
    found["psi_noise"] = round(_noise(*counts), 4)
    shares = [side / side.sum() for side in counts]
    order = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:MOVED]
    names = names or {}
    found["moved"] = [
        [names.get(keys[i], keys[i]), round(float(shares[0][i]), 4), round(float(shares[1][i]), 4)] for i in order
    ]
    return found


def stability(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the population stability index of counts [..., K] over their last axis."""
    shares = [(side + 0.5) / (side + 0.5).sum(-1, keepdims=True) for side in (expected, actual)]
    index: npt.NDArray[np.float64] = ((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum(-1)
    return index


def _noise(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """Return what the index of two nights of the same distribution stays below, 99 times in 100."""
    random, pooled = np.random.default_rng(SEED), (expected + actual) / (expected + actual).sum()
    drawn = [random.multinomial(int(side.sum()), pooled, DRAWS) for side in (expected, actual)]
    return float(np.quantile(stability(drawn[0], drawn[1]), QUANTILE))


def objections(found: Document, settings: CheckSettings) -> list[str]:
    """Return in words where a night is beyond its bounds."""
    said = []
    number = found["nights"]
    volume, nights = found["volume"], "the night before" if number == 1 else f"the {number} nights before"
    for bound, beyond, key in (
        (settings.min_volume, "less", "min_volume"), (settings.max_volume, "more", "max_volume"),
    ):  # fmt: skip
        if None not in (bound, volume) and (volume < bound if beyond == "less" else volume > bound):
            said.append(
                f"{found['images_in']:,} new images are {volume:.2f} times the median of {nights}, {beyond} than "
                f"checks.{key} = {bound:g}"
            )
    psi = found["psi"]
    if None not in (settings.max_psi, psi) and psi > settings.max_psi and psi > found["psi_noise"]:
        moved = ", ".join(f"{name} {was:.1%} -> {now:.1%}" for name, was, now in found["moved"])
        said.append(
            f"the labels are others than in {nights}: population stability index {psi:.2f}, more than checks.max_psi = "
            f"{settings.max_psi:g} ({moved})"
        )
    if found["confidence_noise"] is not None and settings.max_confidence_shift is not None:
        shift = found["confidence"] - found["confidence_before"]
        if abs(shift) > max(settings.max_confidence_shift, found["confidence_noise"]):
            said.append(
                f"the mean confidence is {found['confidence']:.3f}, and was {found['confidence_before']:.3f} in {nights}, further "
                f"apart than checks.max_confidence_shift = {settings.max_confidence_shift:g}"
            )
    return said
