"""`nightshift report`: the page of a run, one HTML file beside its run.json."""

import json

from jobs.config import Config
from jobs.console import say
from jobs.history import COMMANDS, SHOWN, nights_of
from jobs.runs import read_runs
from pipeline import layout
from pipeline.documents import Document, read_document
from pipeline.errors import NightshiftError, NotFoundError, UsageError
from pipeline.storage import Storage, join


def show(config: Config, run_id: str | None, as_json: bool) -> int:
    """Write the page of a run (default: the data set's last one that did more than plan) and print where it is."""
    store = config.open_store()
    run = _chosen(store, config, run_id)
    location = write_report(config, store, run)
    print(json.dumps(run, ensure_ascii=False) if as_json else location)
    return 0


def write_report(config: Config, store: Storage, run: Document) -> str:
    """Write the page of a run and return its location."""
    from pipeline.gallery import gather
    from pipeline.page import render

    path = f"{layout.run(run['run_id'])}/report.html"
    nights = [night for night in nights_of(store, config) if night["started_at"] <= run["started_at"]][-SHOWN:]
    page = gather(store, run, config.input, config.storage, nights if run["command"] in COMMANDS else ())
    store.write(path, render(page).encode())
    return join(store.url, path)


def announce_report(config: Config, store: Storage, run: Document) -> None:
    """Write the page at the end of a run and say where it is; a page that fails takes nothing away from the run."""
    try:
        say(f"report: {write_report(config, store, run)}")
    except NightshiftError as error:
        say(f"the report cannot be written ({error}); `nightshift report CONFIG --run {run['run_id']}` tries again")


def _chosen(store: Storage, config: Config, run_id: str | None) -> Document:
    if run_id:
        try:
            return read_document(store, f"{layout.run(run_id)}/run.json")
        except NotFoundError as error:
            raise UsageError(
                f"the store has no run {run_id!r}; `nightshift status CONFIG` lists the last ones"
            ) from error
    runs = [run for run in read_runs(store) if run["dataset"] == config.dataset]
    worked = [run for run in runs if run["command"] != "plan"] or runs
    if not worked:
        raise UsageError(f"the store has no run of data set {config.dataset!r} yet; label first")
    return worked[-1]
