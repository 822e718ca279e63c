import json
from pathlib import Path

import pytest

from jobs.report import announce_report, show, write_report
from jobs.runs import Run, execute
from pipeline.errors import UsageError


def leave(config, command: str, run_id: str, started_at: str) -> dict:
    run = Run(command, config, run_id)
    run.note(started_at=started_at)
    execute(run, lambda current: None)
    return run.record


@pytest.fixture
def nights(night):
    """Three runs of this data set, the last one a plan, and a later one of another data set."""
    night.write("a.parquet", list(range(5)))
    config, version = night.config(), night.seal()
    night.whole(config, version)
    leave(config, "train", "r1", "2026-11-23T02:00:00+00:00")
    leave(config, "label", "r2", "2026-11-24T02:00:00+00:00")
    leave(config, "plan", "r3", "2026-11-25T02:00:00+00:00")
    leave(night.config(input={"name": "other"}), "label", "r4", "2026-11-26T02:00:00+00:00")
    return night, config


@pytest.mark.parametrize(("asked", "shown"), [(None, "r2"), ("r1", "r1"), ("r3", "r3")])
def test_page_lies_beside_the_record_and_its_place_is_printed(nights, capsys, asked, shown):
    night, config = nights
    assert show(config, asked, as_json=False) == 0
    location = capsys.readouterr().out.strip()
    assert location == f"{night.store.url}/runs/{shown}/report.html"
    assert shown in Path(location).read_text()


def test_plan_is_shown_when_there_is_nothing_else(night, capsys):
    leave(night.config(), "plan", "r1", "2026-11-23T02:00:00+00:00")
    show(night.config(), None, as_json=False)
    assert capsys.readouterr().out.strip().endswith("/runs/r1/report.html")


def test_json_prints_the_record(nights, capsys):
    night, config = nights
    show(config, "r1", as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(night.store.read("runs/r1/run.json"))


def test_page_of_a_labelling_run_shows_its_labels(nights):
    night, config = nights
    version = night.seal()
    record = leave(config, "label", "r9", "2026-11-27T02:00:00+00:00")
    record |= {"model": f"tiny@{version}", "fingerprint": night.task(config, version).generation.fingerprint}
    page = Path(write_report(config, night.store, record)).read_text()
    assert page.count("<img ") == 10  # five least, five most confident
    assert f"tiny@{version}" in page


def test_page_is_written_again_over_itself(nights, capsys):
    night, config = nights
    record = json.loads(night.store.read("runs/r2/run.json"))
    first = Path(write_report(config, night.store, record)).read_text()
    announce_report(config, night.store, record)
    assert f"report: {night.store.url}/runs/r2/report.html" in capsys.readouterr().err
    assert night.store.read("runs/r2/report.html").decode() == first


def test_run_that_does_not_exist_is_said(nights):
    with pytest.raises(UsageError, match="the store has no run 'r99'; `nightshift status CONFIG` lists"):
        show(nights[1], "r99", as_json=False)


def test_data_set_without_a_run_is_said(night):
    with pytest.raises(UsageError, match="the store has no run of data set 'data' yet"):
        show(night.config(), None, as_json=False)
