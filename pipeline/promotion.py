"""Who may become production: enough right labels, better than production on the same images, honest about how sure it is."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import layout
from pipeline.documents import Document, advance, newest, read_document
from pipeline.errors import AlreadyExistsError, HeldError, UsageError
from pipeline.intervals import sign_test
from pipeline.judged import KEY
from pipeline.judgesettings import PromoteSettings
from pipeline.storage import Storage

NEVER_RIGHT = 2**31 - 1  # mistakes on an image whose label a model does not know


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images: how many the first has fewer mistakes on than the second, how many more."""

    num_images: int
    better: int
    worse: int

    @property
    def p(self) -> float:
        """Probability of so many better ones, or more, if neither model were better than the other."""
        return sign_test(self.better, self.worse)


def compare(candidate: pa.Table, current: pa.Table) -> Comparison:
    """Compare two models by their judged rows; an image that only one of them knows the label of is a mistake of the other."""
    tables = [table.select(KEY).append_column("mistakes", _mistakes(table)) for table in (candidate, current)]
    pairs = tables[0].join(tables[1], list(KEY), join_type="full outer", right_suffix="_current")
    mine, its = (pc.fill_null(pairs[name], NEVER_RIGHT) for name in ("mistakes", "mistakes_current"))
    return Comparison(
        pairs.num_rows, pc.sum(pc.less(mine, its)).as_py() or 0, pc.sum(pc.greater(mine, its)).as_py() or 0
    )


def _mistakes(table: pa.Table) -> pa.ChunkedArray:
    """Return the mistakes on each image; a label of the truth that the model cannot say is one."""
    return pc.add(table["errors"], table["unknown"]) if "unknown" in table.column_names else table["errors"]


def objections(figures: Document, comparison: Comparison | None, wanted: PromoteSettings) -> Iterator[str]:
    """Yield why a version with these figures must not become production; `comparison` is with production, if there is one."""
    top1 = figures["top1"] * figures["num_images"] / (figures["num_images"] + _without_class(figures))
    shares = (
        ("top-1", top1, "min_top1", wanted.min_top1),
        ("mean average precision", figures.get("map"), "min_map", wanted.min_map),
    )
    for name, share, key, least in shares:
        if least is not None and (share or 0.0) < least:
            yield f"its {name} is {_share(share)}, below promote.{key} ({least:.1%})"
    ece = figures["calibration"]["ece"]
    if wanted.max_ece is not None and ece is None:
        yield "it says no label of any image, so nothing is known of its confidence"
    elif wanted.max_ece is not None and ece > wanted.max_ece:
        yield f"its confidence and its accuracy are {ece:.1%} apart, more than promote.max_ece ({wanted.max_ece:.1%})"
    if comparison and comparison.better <= comparison.worse:
        yield f"it is better than production on {comparison.better:,} images and worse on {comparison.worse:,}"
    elif comparison and comparison.p > wanted.max_p:
        yield (
            f"it is better than production on {comparison.better:,} images and worse on {comparison.worse:,}, which chance alone "
            f"brings about with a probability of {comparison.p:.2g}, more than promote.max_p ({wanted.max_p:g})"
        )


def _without_class(figures: Document) -> int:
    """Return the images whose one label is no class of the model: it is wrong on each."""
    return 0 if figures.get("task") == "multi_label" else sum(figures["unknown_labels"].values())


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"


def point_to(store: Storage, model: str, document: Document, after: int) -> None:
    """Make `document["version"]` production; HeldError when somebody else moved the pointer since it was number `after`."""
    try:
        advance(store, layout.production(model), document, after)
    except AlreadyExistsError as error:
        raise HeldError(
            f"production of {model} was changed by another run at the same time; look at it (nightshift status) and decide again"
        ) from error


def pointer(store: Storage, model: str) -> tuple[int, Document]:
    """Return the number and the document of the pointer to production; UsageError when there is none."""
    found = newest(store, layout.production(model))
    if found is None:
        raise UsageError(
            f"the store has no production version of model {model!r}; `nightshift train CONFIG` makes the first"
        )
    return found


def version_before(store: Storage, model: str) -> tuple[int, str] | None:
    """Return the number and the version that were production before this one, None when this is the first.

    A pointer that went back says in `restores` to which number: from there going back goes on.
    """
    number, _ = _first_time(store, model, pointer(store, model)[0])
    if number == 1:
        return None
    number, document = _first_time(store, model, number - 1)
    return number, document["version"]


def _first_time(store: Storage, model: str, number: int) -> tuple[int, Document]:
    """Return the pointer that a pointer goes back to, itself if it goes forward."""
    document = read_document(store, f"{layout.production(model)}/{number}.json")
    while "restores" in document:
        number = document["restores"]
        document = read_document(store, f"{layout.production(model)}/{number}.json")
    return number, document
