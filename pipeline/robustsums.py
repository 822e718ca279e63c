"""How much worse a model does on spoilt pictures: counts for each corruption and severity, and what they say."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.intervals import wilson

CLEAN = ("clean", 0)
Key = tuple[str, int]  # corruption, severity


@dataclass
class RobustSums:
    """Counts over images by (corruption, severity): wrong ones among the labelled, and flips, where the clean picture is said
    to be something else. `example` is one image with what is said of it each time.
    """

    num_images: int = 0
    num_labelled: int = 0
    quarantined: int = 0
    wrong: Counter[Key] = field(default_factory=Counter)
    flips: Counter[Key] = field(default_factory=Counter)
    example: dict[str, Any] | None = None

    def __iadd__(self, other: "RobustSums") -> "RobustSums":
        self.num_images += other.num_images
        self.num_labelled += other.num_labelled
        self.quarantined += other.quarantined
        self.wrong.update(other.wrong)
        self.flips.update(other.flips)
        examples = [example for example in (self.example, other.example) if example]
        self.example = min(examples, key=lambda example: (example["segment"], example["position"]), default=None)
        return self


def summarize_robustness(
    sums: RobustSums, corruptions: Sequence[tuple[str, str]], severities: Sequence[int]
) -> dict[str, Any]:
    """Return the figures as a JSON object; `corruptions` are (challenge, name).

    `error` and `flips` are shares by severity. `relative` is the mean error over severities as a multiple of the clean error,
    None without labels or without a clean error. Flips need no labels.
    """
    clean = sums.wrong[CLEAN] / sums.num_labelled if sums.num_labelled else None
    return {
        "num_images": sums.num_images, "num_labelled": sums.num_labelled, "quarantined": sums.quarantined,
        "severities": list(severities), "clean_error": clean,
        "clean_interval95": list(wilson(sums.wrong[CLEAN], sums.num_labelled)) if sums.num_labelled else None,
        "corruptions": [_figures(sums, challenge, name, severities, clean) for challenge, name in corruptions],
        "example": sums.example,
    }  # fmt: skip


def _figures(
    sums: RobustSums, challenge: str, name: str, severities: Sequence[int], clean: float | None
) -> dict[str, Any]:
    keys = [(name, severity) for severity in severities]
    flips = [sums.flips[key] / sums.num_images for key in keys]
    figures: dict[str, Any] = {
        "challenge": challenge,
        "name": name,
        "flips": flips,
        "mean_flips": sum(flips) / len(flips),
    }
    if clean is None:
        return figures | {"error": None, "mean_error": None, "relative": None}
    error = [sums.wrong[key] / sums.num_labelled for key in keys]
    mean = sum(error) / len(error)
    return figures | {"error": error, "mean_error": mean, "relative": mean / clean if clean else None}
