"""`nightshift history CONFIG`: the last nights of a data set, a line each."""

import json
from collections.abc import Mapping
from typing import Any

from jobs.config import Config
from jobs.console import say
from jobs.runs import read_runs
from pipeline.holds import APPROVED, read_holds
from pipeline.nights import night_from_json
from pipeline.page import decimal, number, percent, rate
from pipeline.storage import Storage

SHOWN = 30
COMMANDS = ("label", "nightly")


def show(config: Config, limit: int, as_json: bool) -> int:
    """Print the nights, oldest first."""
    nights = nights_of(config.open_store(), config)[-limit:]
    if as_json:
        print(json.dumps(nights, ensure_ascii=False))
        return 0
    print(f"{'night':<12}{'run':<40}{'images':>9}{'bad':>8}{'psi':>8}{'conf':>7}{'img/s':>8}{'cost':>8}  ended")
    for night in nights:
        cost = "-" if night["cost"] is None else f"{night['cost']:.{2 if night['cost'] >= 1 else 4}f}"
        print(
            f"{night['night']:<12}{night['run_id']:<40}{number(night['images_in']):>9}{percent(night['bad']):>8}"
            f"{decimal(night['psi']):>8}{decimal(night['confidence']):>7}{rate(night['images_per_s']):>8}{cost:>8}  {night['ended']}"
        )
    if not nights:
        say("no nights yet; `nightshift nightly CONFIG` is the first")
    return 0


def nights_of(store: Storage, config: Config) -> list[dict[str, Any]]:
    """Return what each labelling run of the data set brought, oldest first."""
    decisions = {hold.run_id: hold.decision or "held back" for hold in read_holds(store, config.dataset)}
    runs = [run for run in read_runs(store) if run["dataset"] == config.dataset and run["command"] in COMMANDS]
    return [_night(run, decisions.get(run["run_id"]), config.cluster.price_per_hour) for run in runs]


def _night(run: Mapping[str, Any], decision: str | None, price: float | None) -> dict[str, Any]:
    checks, images = run.get("checks") or {}, run["images_in"]
    sums = night_from_json(run["night"]) if run.get("night") else None
    seconds = run.get("seconds")
    return {
        "night": run.get("date") or str(run["started_at"])[:10],
        "run_id": run["run_id"],
        "started_at": run["started_at"],
        "model": run["model"],
        "images_in": images,
        "bad": run["quarantined"] / images if images else None,
        "psi": checks.get("psi"),
        "volume": checks.get("volume"),
        "confidence": sums.mean_confidence if sums else None,
        "images_per_s": run.get("images_per_s"),
        "seconds": seconds,
        "cost": None if price is None or seconds is None else round(price * seconds / 3600, 4),
        "published": decision == APPROVED if decision else run.get("view") is not None,
        "exit_code": run["exit_code"],
        "ended": decision or str(run.get("outcome", "")).partition(":")[0],
    }
