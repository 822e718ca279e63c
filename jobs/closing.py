"""What a labelling run says at its end, in words: what came in and out, by which engine, what it waited for, what to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.console import counted
from jobs.tally import limit
from pipeline.storage import join

LABELLING = ("label", "nightly", "demo")
KINDS_SAID = 4  # of retries


def closing(record: Mapping[str, Any], store: str) -> list[str]:
    """Return the lines for a run's record; none for a command that does not label, or a run that never got to it."""
    if record["command"] not in LABELLING or record["model"] is None:
        return []
    lines = [
        _books(record),
        _engines(record["engines"]),
        _time(record),
        _review(record["review"], store),
        _next(record),
    ]
    return [line for line in lines if line]


def _books(record: Mapping[str, Any]) -> str:
    before, remaining = record["skipped"], record["remaining"]
    left = f"; {counted(remaining)} remain" if remaining else ""
    if not record["images_in"]:
        return f"nothing was labelled; {counted(before)} were done before{left}"
    rate = record["images_per_s"]
    pace = f", {rate:,.{1 if rate < 10 else 0}f}/s while labelling" if rate else ""
    took = f"; took {spoken(record['seconds'])}{pace}" if record.get("seconds") is not None else ""
    return (
        f"{counted(record['images_in'])} in = {record['labelled']:,} labelled + {record['quarantined']:,} quarantined"
        f"; {before:,} were done before{left}{took}"
    )


def _engines(engines: Sequence[Mapping[str, Any]]) -> str:
    said = [f"{e['engine']} {e['precision']} on {e['device']}{_agreement(e.get('agreement'))}" for e in engines]
    return f"engine: {'; '.join(said)}" if said else ""


def _agreement(found: Mapping[str, Any] | None) -> str:
    if not found or not found.get("photos"):
        return ""
    return f", the reference's label on {round(found['top1'] * found['photos'])} of {counted(found['photos'], 'photo')}"


def _time(record: Mapping[str, Any]) -> str:
    kinds = sorted(record["retries"].items(), key=lambda item: -item[1])
    said = ", ".join(f"{count:,} x {kind}" for kind, count in kinds[:KINDS_SAID])
    others = ", ..." if len(kinds) > KINDS_SAID else ""
    return "; ".join(
        part for part in (limit(record["time_shares"]), f"tried again: {said}{others}" if kinds else "") if part
    )


def _review(review: Mapping[str, Any] | None, store: str) -> str:
    if not review or not review["rows"]:
        return ""
    those = f", of which the {review['rows']:,} least confident" if review["rows"] < review["num_below"] else ""
    return (
        f"to be looked at: {counted(review['num_below'], 'label')} with a confidence below {review['below']:g}{those}: "
        f"{join(store, review['path'])}"
    )


def _next(record: Mapping[str, Any]) -> str:
    if record["exit_code"] or record["command"] != "label":  # the outcome says it; a night has its page already
        return ""
    return "next: nightshift report CONFIG shows it as a page, nightshift labels CONFIG the labels"


def spoken(seconds: float) -> str:
    """Say a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"
