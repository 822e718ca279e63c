"""The report page of a run: plain values in, one self-contained HTML document out.

Whatever is counted, scaled or worded happens here; `page.html.j2` beside it only lays out. The page asks for nothing
from any network and runs no script: its own content security policy forbids both.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader

from pipeline.tunesettings import Range

Row = dict[str, Any]
MAX_MATRIX_CLASSES = 30
MAX_BARS = 30
MAX_LISTED = 20
ABSENT = "—"


@dataclass(frozen=True)
class Thumbnail:
    """One image to show, with its predictions as (label, probability), best first; or the labels `said` of it, in words."""

    image_id: str
    data_uri: str
    uri: str
    top: tuple[tuple[str, float], ...]
    truth: str | None
    said: str = ""


@dataclass(frozen=True)
class PageData:
    """All that a page says. Only `run` is certain to have content; a part that is empty gets no section."""

    run: Row
    label_counts: tuple[tuple[str, int], ...]
    confidence_counts: tuple[int, ...]
    quarantine: tuple[Row, ...]
    quarantine_reasons: tuple[tuple[str, int], ...]
    evaluation: Row | None
    training: Row | None
    least_confident: tuple[Thumbnail, ...]
    most_confident: tuple[Thumbnail, ...]
    misclassified: tuple[Thumbnail, ...]
    spoilt: tuple[tuple[str, tuple[Thumbnail, ...]], ...] = ()  # of one image: corruption, its severities
    nights: tuple[Row, ...] = ()  # of the data set, oldest first, up to this one


def render(data: PageData) -> str:
    """Write the whole document, everything from `data` escaped."""
    return environment().get_template("page.html.j2").render(vars(data)).strip() + "\n"


@cache
def environment() -> Environment:
    """Make the template's world, once: autoescaped, the functions below as filters, None written as nothing."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    filters = (
        number,
        rate,
        percent,
        decimal,
        duration,
        moment,
        speak,
        matrix,
        class_rows,
        flat,
        spoken_counts,
    )
    made.filters.update({function.__name__: function for function in filters})
    made.globals.update(ticks=ticks, scale=scale, curves=curves, tried=tried)
    made.globals.update(MAX_MATRIX_CLASSES=MAX_MATRIX_CLASSES, MAX_BARS=MAX_BARS, MAX_LISTED=MAX_LISTED)
    return made


def speak(top: Iterable[tuple[str, float]]) -> str:
    """Say predictions as people read them: `82% cat, 15% dog`. What would read 0% is left out, but not the first."""
    parts = [f"{probability:.0%} {label}" for label, probability in top]
    return ", ".join(parts[:1] + [part for part in parts[1:] if not part.startswith("0%")])


def is_number(value: object) -> bool:
    """Tell whether a value can be drawn or formatted; None, NaN, infinities and absent keys cannot."""
    return isinstance(value, int | float) and math.isfinite(value)


def number(value: Any) -> str:
    """Write a count with thousands separators."""
    return f"{value:,.0f}" if is_number(value) else ABSENT


def rate(value: Any) -> str:
    """Write a rate with about three digits."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}" if is_number(value) else ABSENT


def decimal(value: Any) -> str:
    """Write a loss or a score with three decimals."""
    return f"{value:.3f}" if is_number(value) else ABSENT


def percent(value: Any) -> str:
    """Write a share with one decimal; only nothing reads 0%, and only everything reads 100%."""
    if not is_number(value) or value in (0, 1):
        return f"{value:.0%}" if is_number(value) else ABSENT
    return "<0.1%" if 0 < value < 0.0005 else ">99.9%" if 0.9995 <= value < 1 else f"{value:.1%}"


def duration(seconds: Any) -> str:
    """Write a length of time in its two largest units."""
    if not is_number(seconds):
        return ABSENT
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {s} s"
    return f"{hours} h {minutes_left} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def spoken_counts(counts: dict[str, int]) -> str:
    """Write counts by kind, the most frequent first: `9 x worker, 2 x storage`."""
    return ", ".join(f"{number(count)} x {kind}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


def moment(text: Any) -> str:
    """Write an ISO time as `24 Nov 2026, 02:00 UTC`; anything else is passed through."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return f"{time.day} {time:%b %Y, %H:%M} UTC"


def flat(config: Row, prefix: str = "") -> Iterator[tuple[str, str]]:
    """List nested settings as (`section.key`, value), the way that `--set` takes them."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def matrix(evaluation: Row) -> list[tuple[str, int, list[tuple[int, float]]]]:
    """List per true class its name, its support, and per predicted class the count and the share of the support."""
    counts = {(true, predicted): count for true, predicted, count in evaluation.get("confusion", ())}
    classes = evaluation.get("classes", ())
    support = [
        sum(counts.get((true, predicted), 0) for predicted in range(len(classes))) for true in range(len(classes))
    ]
    return [
        (name, total, [(count := counts.get((true, other), 0), count / max(total, 1)) for other in range(len(classes))])
        for true, (name, total) in enumerate(zip(classes, support, strict=True))
    ]


def class_rows(evaluation: Row) -> list[Row]:
    """List the per-class scores in class order, or only the lowest by F1 where there are too many to read."""
    rows = list(evaluation.get("per_class", ()))
    if len(rows) <= MAX_MATRIX_CLASSES:
        return rows
    return sorted((row for row in rows if row.get("support")), key=lambda row: row.get("f1") or 0.0)[:MAX_LISTED]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """List the round numbers that cover `low` to `high`, in about `count` steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((m * power for m in (1, 2, 5) if m * power * count >= span), 10 * power)
    return [round(i * step, 12) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Map `low` to `start` and `high` to `end`; a range of one value maps to the middle."""
    return lambda value: round(start + (end - start) * ((value - low) / (high - low) if high > low else 0.5), 1)


def curves(history: Sequence[Row]) -> list[tuple[str, dict[str, list[tuple[float, float]]]]]:
    """List per quantity its title and its lines of (epoch, value); what was never measured has no line and no chart."""
    charts = []
    for title, quantity in (("Loss", "loss"), ("Accuracy", "top1"), ("Mean average precision", "map")):
        keys = {"Training": f"train_{quantity}", "Validation": f"val_{quantity}"}
        epochs = [(row["epoch"] if is_number(row.get("epoch")) else place, row) for place, row in enumerate(history, 1)]
        lines = {
            name: [(epoch, row[key]) for epoch, row in epochs if is_number(row.get(key))] for name, key in keys.items()
        }
        charts.append((title, {name: line for name, line in lines.items() if line}))
    return [(title, lines) for title, lines in charts if lines]


def tried(tuning: Row) -> list[tuple[str, list[tuple[float, str]], list[tuple[float, float, Row]]]]:
    """List for each number that was tuned its key, marks on its axis (place, name), and its trials as (place, score, trial).

    Places run from 0 to 1. Scores far worse than most are drawn at the edge: one that diverged would flatten all others.
    """
    scored = [trial for trial in tuning["trials"] if is_number(trial.get("score"))]
    lower_is_better = tuning["metric"] == "val_loss"
    worst = _worst_drawn([trial["score"] for trial in scored], lower_is_better)
    charts = []
    for key, given in tuning["space"].items():
        domain = _range(given)
        if domain and scored:
            points = [
                (domain.place(trial["values"][key]), (min if lower_is_better else max)(trial["score"], worst), trial)
                for trial in scored
            ]
            charts.append((key, [(domain.place(mark), f"{mark:g}") for mark in _marks(domain)], points))
    return charts


def _range(domain: Row | list[Any]) -> Range | None:
    """Return the range that a list of numbers spans; None for words."""
    if isinstance(domain, dict):
        return Range.model_validate(domain)
    numbers = [value for value in domain if is_number(value) and not isinstance(value, bool)]
    if len(set(numbers)) < 2 or len(numbers) < len(domain):
        return None
    low, high = min(numbers), max(numbers)
    return Range(min=low, max=high, log=low > 0 and high >= 8 * low)


def _marks(domain: Range) -> list[float]:
    low, high = domain.min, domain.max
    if not domain.log:
        return [mark for mark in ticks(low, high, 4) if low <= mark <= high]
    decades = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return decades[:: max(1, len(decades) // 4)] or [low, high]


def _worst_drawn(scores: Sequence[float], lower_is_better: bool) -> float:
    """Return the score beyond which points are drawn at the edge: as far behind the middle as the best is ahead, three times."""
    if not scores:
        return 0.0
    best, middle = (min if lower_is_better else max)(scores), median(scores)
    if middle == best:
        return (max if lower_is_better else min)(scores)
    return middle + 3 * (middle - best)
