import json
from pathlib import Path

import pytest

from jobs.runs import Run, execute, read_runs, without_secrets
from pipeline.counts import Counts
from pipeline.errors import (
    ConfigError,
    HeldError,
    InputError,
    IntegrityError,
    ModelError,
    StorageError,
    TransientError,
    UsageError,
)

FIELDS = {
    "run_id", "command", "dataset", "started_at", "finished_at", "seconds", "images_in", "labelled", "quarantined",
    "skipped", "failed_shards", "images_per_s", "model", "fingerprint", "exit_code",
}  # fmt: skip


def record(night, run_id: str = "r1") -> dict:
    return json.loads(night.store.read(f"runs/{run_id}/run.json"))


def raising(error: BaseException):
    def work(run: Run) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "exit_code", "outcome"),
    [
        (lambda run: None, 0, "complete"),
        (raising(StorageError("disk full")), 1, "failed: disk full"),
        (raising(TransientError("503 for an hour")), 1, "failed: 503 for an hour"),
        (raising(IntegrityError("one lost")), 1, "failed: one lost"),
        (raising(ZeroDivisionError("division by zero")), 1, "failed: ZeroDivisionError: division by zero"),
        (raising(MemoryError()), 1, "failed: MemoryError: "),
        (raising(UsageError("no")), 2, "refused: the command, the config or the input must be corrected: no"),
        (raising(ConfigError("no")), 2, "refused: the command, the config or the input must be corrected: no"),
        (raising(InputError("no")), 2, "refused: the command, the config or the input must be corrected: no"),
        (raising(ModelError("no")), 2, "refused: the command, the config or the input must be corrected: no"),
        (raising(HeldError("2 shards")), 3, "finished, but held back or incomplete: 2 shards"),
        (lambda run: run.end(3, "2 shards"), 3, "finished, but held back or incomplete: 2 shards"),
        (lambda run: run.end(4), 4, "nothing new, although the config requires it"),
        (raising(KeyboardInterrupt()), 5, "stopped early; the same command continues it"),
    ],
)
def test_every_way_to_end_leaves_a_record(night, work, exit_code, outcome, capsys):
    run = Run("label", night.config(), "r1")
    assert execute(run, work) == exit_code
    found = record(night)
    assert found.keys() >= FIELDS
    assert (found["exit_code"], found["outcome"]) == (exit_code, outcome)
    assert (found["run_id"], found["command"], found["dataset"]) == ("r1", "label", "data")
    assert found["started_at"] <= found["finished_at"]
    assert found["seconds"] >= 0
    assert found == run.record
    said = capsys.readouterr().err
    assert (outcome in said) == (exit_code != 0)


def test_record_holds_what_the_run_did(night):
    def work(run: Run) -> None:
        run.note(model="tiny@1", fingerprint="f", images_per_s=12.5, skipped=4)
        run.count(Counts(10, 8, 2))
        run.stage("label", 1.23456, 10)

    execute(Run("label", night.config(), "r1"), work)
    found = record(night)
    assert (found["images_in"], found["labelled"], found["quarantined"], found["skipped"]) == (10, 8, 2, 4)
    assert (found["model"], found["fingerprint"], found["images_per_s"]) == ("tiny@1", "f", 12.5)
    assert found["stages"] == [{"name": "label", "seconds": 1.235, "images": 10}]
    assert found["config"]["model"]["name"] == "tiny"
    assert found["versions"]["pyarrow"]


@pytest.mark.parametrize(
    ("endings", "exit_code", "reason"),
    [
        ([(3, "failed shards"), (4, "")], 3, "failed shards"),
        ([(4, ""), (3, "failed shards")], 3, "failed shards"),
        ([(3, "a broken file"), (3, "failed shards")], 3, "a broken file"),
        ([(3, "a broken file"), (5, "")], 5, "the same command continues it"),
        ([(3, "a broken file"), (1, "no space")], 1, "no space"),
        ([(5, ""), (2, "a typo")], 2, "a typo"),
    ],
)
def test_of_several_endings_the_gravest_counts_and_of_equals_the_first(night, endings, exit_code, reason):
    def work(run: Run) -> None:
        for ending in endings:
            run.end(*ending)

    assert execute(Run("label", night.config(), "r1"), work) == exit_code
    assert record(night)["outcome"].endswith(reason)


@pytest.mark.parametrize(
    ("value", "recorded"),
    [
        ("https://user:secret@host/a/b.safetensors", "https://***@host/a/b.safetensors"),
        ("https://host/a.safetensors?sig=secret&se=1", "https://host/a.safetensors?***"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("/data/a?b", "/data/a?b"),
        ({"a": ["az://token@box/c", 1, None]}, {"a": ["az://***@box/c", 1, None]}),
    ],
)
def test_credentials_in_urls_are_not_recorded(value, recorded):
    assert without_secrets(value) == recorded


def test_the_records_config_has_no_credentials(night):
    config = night.config(model={"weights": "https://user:hunter2@host/w.safetensors"})
    execute(Run("label", config, "r1"), lambda run: None)
    assert b"hunter2" not in night.store.read("runs/r1/run.json")


def test_the_outcome_has_no_credentials(night):
    run = Run("label", night.config(), None)
    run.end(1, "https://me:pw@host/x does not answer")
    assert run.record["outcome"] == "failed: https://***@host/x does not answer"


def test_defect_shows_its_traceback_when_asked_to(night, capsys, monkeypatch):
    monkeypatch.setenv("NIGHTSHIFT_DEBUG", "1")
    execute(Run("label", night.config(), "r1"), raising(ZeroDivisionError("x")))
    assert "Traceback" in capsys.readouterr().err


def test_cluster_session_is_left_however_the_run_ends(night):
    left = []
    run = Run("label", night.config(), "r1")
    run._session.callback(left.append, True)
    execute(run, raising(KeyboardInterrupt()))
    assert left == [True]


@pytest.mark.parametrize(("work", "exit_code"), [(lambda run: None, 1), (raising(KeyboardInterrupt()), 1)])
def test_store_that_cannot_be_written_is_said(night, tmp_path, capsys, work, exit_code):
    (tmp_path / "in-the-way").write_text("")
    run = Run("label", night.config(store=str(tmp_path / "in-the-way")), None)
    assert execute(run, work) == exit_code
    said = capsys.readouterr().err
    assert "the run's record cannot be written" in said
    assert str(tmp_path / "in-the-way") in said


@pytest.mark.parametrize(
    "run_id", ["", "a/b", "/etc", "..", "../other", "a/../b", ".hidden", "-rf", "two words", "name\n", "r1\\..", "é"]
)
def test_run_id_that_is_no_name_is_refused(night, run_id):
    with pytest.raises(UsageError, match=r"--run-id .*expected a name"):
        Run("label", night.config(), run_id)
    assert not Path(night.store.url).exists()


@pytest.mark.parametrize("run_id", ["r1", "2026-11-24", "night_1.b", "7", "a..b"])
def test_run_id_that_is_a_name_is_taken(night, run_id):
    assert execute(Run("label", night.config(), run_id), lambda run: None) == 0
    assert record(night, run_id)["run_id"] == run_id


def test_run_id_of_an_earlier_run_is_refused_and_its_record_kept(night):
    execute(Run("label", night.config(), "r1"), raising(StorageError("first")))
    before = night.store.read("runs/r1/run.json")
    with pytest.raises(UsageError, match="the store has a run of this name"):
        Run("label", night.config(), "r1")
    assert night.store.read("runs/r1/run.json") == before


def test_of_two_runs_of_one_name_at_once_one_keeps_its_record_and_the_other_says_so(night, capsys):
    first, second = (Run("label", night.config(), "r1") for _ in range(2))
    assert execute(first, lambda run: None) == 0
    before = night.store.read("runs/r1/run.json")
    assert execute(second, lambda run: None) == 1
    assert "exists already" in capsys.readouterr().err
    assert night.store.read("runs/r1/run.json") == before


def test_runs_without_a_name_get_one_each(night):
    names = {Run("label", night.config(), None).id for _ in range(20)}
    assert len(names) == 20
    assert all("-label-" in name for name in names)


def test_runs_are_listed_oldest_first_without_what_is_no_record(night):
    for name, at in (("b", "2026-11-25T02:00:00+00:00"), ("a", "2026-11-26T02:00:00+00:00"), ("c", "2026-11-24")):
        night.store.write(f"runs/{name}/run.json", json.dumps({"run_id": name, "started_at": at}).encode())
    night.store.write("runs/torn/run.json", b'{"run_id": ')
    night.store.write("runs/list/run.json", b"[]")
    night.store.write("runs/foreign/run.json", b"{}")
    night.store.write("runs/a/report.html", b"<p>")
    assert [run["run_id"] for run in read_runs(night.store)] == ["c", "b", "a"]
