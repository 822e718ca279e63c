"""`nightshift models`: the networks that can be had by name, what they cost, how good they are, and how fast they are here."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jobs.config import read_config
from jobs.console import say
from pipeline.settings import ModelSettings

if TYPE_CHECKING:
    from pipeline.catalog import Entry

HEADER = ("builder", "input px", "parameters M", "multiply-adds G", "gradient MB", "top-1 % and weights")
PREFIX = "IMAGENET1K_"


def show(path: str | None, overrides: Sequence[str], measured: str | None, plot: str | None, as_json: bool) -> int:
    """Print the networks, that of a config first where one is given; measure those named; draw them all."""
    from pipeline.catalog import configured, published

    names, config = _names(measured), read_config(path, overrides) if path else None
    entries = list(published())
    own = configured(config.open_store(), config.model, config.input.size_px) if config else None
    if plot:
        from pipeline.scatter import draw_accuracy

        draw_accuracy(entries, plot)
        say(f"published accuracy against cost: {plot}")
    paces = {name: _pace(name) for name in names}
    if as_json:
        document = {"models": [entry.to_json() for entry in entries], "images_per_s": paces}
        print(json.dumps(document | ({"config": own.to_json()} if own else {}), ensure_ascii=False))
        return 0
    rows = [_row(f"{path}: {own.builder}", [own])] if own else []
    chosen = [entry for entry in entries if not paces or entry.builder in paces]
    rows += [_row(builder, list(group)) for builder, group in groupby(chosen, key=lambda entry: entry.builder)]
    _print([HEADER, *rows])
    for name, pace in paces.items():
        print(f"\n{name}, images/s here:")
        _print([(engine, f"{rate:,.1f}") for engine, rate in sorted(pace.items(), key=lambda pair: -pair[1])])
    return 0


def _names(measured: str | None) -> list[str]:
    """Return the builders to measure; ModelError when one of them is none."""
    from pipeline.zoo import check_builder

    names = [name.strip() for name in (measured or "").split(",") if name.strip()]
    for name in names:
        check_builder(name)
    return list(dict.fromkeys(names))


def _pace(name: str) -> dict[str, float]:
    from pipeline.pace import measure_pace

    say(f"measuring {name} ...")
    rates, refusals = measure_pace(ModelSettings(builder=name))
    for engine, why in refusals.items():
        say(f"{engine} cannot run {name}: {why}")
    return {engine: round(rate, 1) for engine, rate in rates.items()}


def _row(name: str, entries: Sequence["Entry"]) -> tuple[str, ...]:
    """Return the columns of one builder: its first weights' cost, and every weights' accuracy, the best first."""
    first = entries[0]
    judged = sorted((entry for entry in entries if entry.top1 is not None), key=lambda entry: -(entry.top1 or 0.0))
    accuracies = ", ".join(_accuracy(entry, first.input_px) for entry in judged)
    return (
        name, f"{first.input_px}", f"{first.parameters / 1e6:,.2f}", f"{first.multiply_adds / 1e9:,.3f}",
        f"{first.gradient_bytes / 1e6:,.1f}", accuracies or "-",
    )  # fmt: skip


def _accuracy(entry: "Entry", usual_px: int) -> str:
    size = f" at {entry.input_px} px" if entry.input_px != usual_px else ""
    return f"{entry.top1:.3f} {str(entry.weights).removeprefix(PREFIX)}{size}"


def _print(rows: Sequence[tuple[Any, ...]]) -> None:
    """Print columns: the first and the last to the left, numbers between them to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
