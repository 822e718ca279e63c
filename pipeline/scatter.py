"""A picture of published accuracy against cost: one dot per set of weights, a line along what nothing cheaper beats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.catalog import Entry
from pipeline.errors import UsageError

INK, DOT, LINE = "#333333", "#b8bfc6", "#1f6f8b"
SUFFIXES = (".png", ".svg", ".pdf")
# Families that people look for, wherever they lie.
WELL_KNOWN = (
    "alexnet", "vgg16", "resnet18", "resnet50", "squeezenet1_1", "densenet121", "inception_v3", "googlenet", "mobilenet_v2",
    "vit_b_16",
)  # fmt: skip


def frontier(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that no other one of at most their cost beats, cheapest first."""
    best: list[Entry] = []
    for entry in sorted((e for e in entries if e.top1 is not None), key=lambda e: (e.multiply_adds, -(e.top1 or 0.0))):
        if not best or (entry.top1 or 0.0) > (best[-1].top1 or 0.0):
            best.append(entry)
    return best


def draw_accuracy(entries: Sequence[Entry], path: str) -> None:
    """Write the picture; the area of a dot is the network's parameters.

    Raises
    ------
    UsageError
        When the name is no picture's, the place cannot be written, or matplotlib is not installed.
    """
    if not path.endswith(SUFFIXES):
        raise UsageError(f"--plot {path}: expected the name of a picture that ends in {', '.join(SUFFIXES)}")
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError(f"--plot {path}: needs matplotlib; pip install -e '.[plot]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9.5, 6), layout="constrained")
    judged = [entry for entry in entries if entry.top1 is not None]
    best = frontier(judged)
    _dots(axes, judged, best)
    _name(axes, best, (-5, 4), "right")
    _name(axes, [_best_of(name, judged) for name in WELL_KNOWN], (6, -2), "left")
    _dress(axes)
    _drop_overlaps(figure, axes)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror}; choose a place that can be written") from error
    finally:
        plt.close(figure)


def _best_of(builder: str, entries: Sequence[Entry]) -> Entry:
    return max((entry for entry in entries if entry.builder == builder), key=lambda entry: entry.top1 or 0.0)


def _dots(axes: Any, entries: Sequence[Entry], best: Sequence[Entry]) -> None:
    areas = [max(6.0, entry.parameters / 4e5) for entry in entries]
    axes.scatter(*_places(entries), areas, DOT, alpha=0.6)
    axes.step(*_places(best), where="post", color=LINE, linewidth=1)
    axes.scatter(*_places(best), 10, LINE, zorder=3)


def _places(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    return [entry.multiply_adds / 1e9 for entry in entries], [entry.top1 or 0.0 for entry in entries]


def _name(axes: Any, entries: Sequence[Entry], offset: tuple[int, int], side: str) -> None:
    for entry, *place in zip(entries, *_places(entries), strict=True):
        axes.annotate(entry.builder, place, offset, textcoords="offset points", ha=side, fontsize=7, color=INK)


def _dress(axes: Any) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.16, y=0.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("billion multiply-adds an image", color=INK)
    axes.set_ylabel("top-1 accuracy on ImageNet, %", color=INK)
    axes.set_title(
        "Published weights: a dot's area is the network's parameters; along the line nothing cheaper is as good",
        loc="left", fontsize=9, color=INK,
    )  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def _drop_overlaps(figure: Any, axes: Any) -> None:
    """Remove the names that would be written over others, the later of two."""
    figure.draw_without_rendering()
    taken: list[Any] = []
    for text in list(axes.texts):
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
