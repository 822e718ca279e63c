"""Judging predictions by sums and counts: they add up over batches and workers, and become means on the last line only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.intervals import wilson
from pipeline.sureness import Sureness

MOST_PAIRS = 20


class Verdict(NamedTuple):
    """What a model said of one image; `rank` counts the classes that are likelier than the truth."""

    predicted: int
    confidence: float
    probability: float  # of the truth
    rank: int


@dataclass
class Sums:
    """What is known of some judged images. `pairs` counts (true class, predicted class); `loss` sums -ln p(true)."""

    num_images: int = 0
    top1: int = 0
    top5: int = 0
    loss: float = 0.0
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    quarantined: int = 0
    unknown_labels: Counter[str] = field(default_factory=Counter)
    misclassified: list[dict[str, Any]] = field(default_factory=list)
    sureness: Sureness = field(default_factory=Sureness)
    rows: list[pa.Table] = field(default_factory=list)

    def add(self, log_probabilities: npt.NDArray[np.float64], targets: Sequence[int]) -> list[Verdict]:
        """Count predictions [B, K] against their classes; return a verdict on each. Ties go to the lower index."""
        verdicts = []
        for row, target in zip(log_probabilities, targets, strict=True):
            better = int((row > row[target]).sum() + (row[:target] == row[target]).sum())
            predicted = int(row.argmax())
            verdict = Verdict(predicted, float(np.exp(row[predicted])), float(np.exp(row[target])), better)
            self.sureness.add(np.array([verdict.confidence]), np.array([predicted == target]))
            self.num_images += 1
            self.top1 += better < 1
            self.top5 += better < 5
            self.loss -= float(row[target])
            self.pairs[target, predicted] += 1
            verdicts.append(verdict)
        return verdicts

    def __iadd__(self, other: "Sums") -> "Sums":
        self.num_images += other.num_images
        self.top1 += other.top1
        self.top5 += other.top5
        self.loss += other.loss
        self.pairs.update(other.pairs)
        self.sureness += other.sureness
        self.quarantined += other.quarantined
        self.unknown_labels.update(other.unknown_labels)
        self.misclassified += other.misclassified
        self.rows += other.rows
        return self


def per_class(pairs: Counter[tuple[int, int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return support, precision, recall and F1 of every class that occurs; a ratio without a denominator is None.

    Notes
    -----
    precision = TP / predicted, recall = TP / support, F1 = 2 TP / (support + predicted).
    """
    support: Counter[int] = Counter()
    predicted: Counter[int] = Counter()
    for (truth, guess), count in pairs.items():
        support[truth] += count
        predicted[guess] += count
    rows = []
    for index in sorted(set(support) | set(predicted)):
        hits = pairs[index, index]
        rows.append(
            {
                "class_index": index,
                "label": names[index],
                "support": support[index],
                "predicted": predicted[index],
                "precision": hits / predicted[index] if predicted[index] else None,
                "recall": hits / support[index] if support[index] else None,
                "f1": 2 * hits / (support[index] + predicted[index]),
            }
        )
    return rows


def confused(pairs: Counter[tuple[int, int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent mistakes: the true class, what it is taken for, how often, and the share of its images."""
    support: Counter[int] = Counter()
    for (truth, _), count in pairs.items():
        support[truth] += count
    wrong = sorted((-count, truth, guess) for (truth, guess), count in pairs.items() if truth != guess and count)
    return [
        {"label": names[truth], "predicted": names[guess], "num_images": -count, "share": -count / support[truth]}
        for count, truth, guess in wrong[:MOST_PAIRS]
    ]


def summarize(sums: Sums, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of an evaluation as a JSON object: the only place where sums become means."""
    total = sums.num_images
    low, high = wilson(sums.top1, total)
    return {
        "num_images": total,
        "top1": sums.top1 / total,
        "top5": sums.top5 / total,
        "loss": sums.loss / total,
        "interval95": [low, high],
        "per_class": per_class(sums.pairs, names),
        "calibration": sums.sureness.calibration(),
        "coverage": sums.sureness.coverage(),
        "confused": confused(sums.pairs, names),
        "confusion": [[truth, guess, count] for (truth, guess), count in sorted(sums.pairs.items())],
        "quarantined": sums.quarantined,
        "unknown_labels": dict(sorted(sums.unknown_labels.items())),
        "num_misclassified": total - sums.top1,
        "misclassified": sorted(sums.misclassified, key=lambda row: -row["confidence"]),
    }
