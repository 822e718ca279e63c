"""Tuning with real workers, and the trainings that follow it."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from inprocess import InThisProcess
from judging import Workers

from cluster.tuner import Trials
from jobs import crossing, train, tune
from jobs.config import Config
from jobs.runs import Run, execute
from pipeline.registry import read_beside
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage
from pipeline.trials import Trial, write_trial


@pytest.fixture
def config(tmp_path, class_folders, monkeypatch):
    """Return a config of a linear model whose default learning rate is far too small: a planted problem."""
    monkeypatch.setattr(Run, "start_cluster", lambda run: None)  # the session stands already
    monkeypatch.setattr("cluster.trainer.Trainer", InThisProcess)
    monkeypatch.setattr("cluster.labeller.over_shards", Workers().over_shards)
    pictures = class_folders(tmp_path / "images")

    def make(tuning=None, **settings):
        return Config.model_validate(
            {
                "store": str(tmp_path / "store"),
                "input": {"url": str(pictures), "shard_images": 100},
                "model": {"name": "tiny", "builder": "linear", "transforms": {"resize_px": 9, "crop_px": 8}},
                "train": {"mode": "scratch", "epochs": 6, "batch_size": 8, "learning_rate": 1e-7, "sanity": False, **settings},
                "tune": {
                    "trials": 6, "space": {"train.learning_rate": {"min": 1e-7, "max": 1, "log": True}}, **(tuning or {}),
                },
            }
        )  # fmt: skip

    return make


def run(config, module, **options) -> dict:
    started = Run(module.__name__.rsplit(".", 1)[-1], config, None)
    execute(started, lambda current: module.work(current, **options))
    return started.record


def store_of(config):
    return open_storage(config.store, StorageSettings())


def records(config) -> dict[str, dict]:
    found = (path for path in Path(config.store).glob("trainings/*/trials/*.json"))
    return {path.stem: json.loads(path.read_text()) for path in found}


@pytest.mark.parametrize(
    "tuning", [{"search": "random"}, {"search": "optuna", "scheduler": "none"}], ids=["asha", "optuna"]
)
def test_tuning_solves_what_the_default_does_not(ray_session, config, tuning, capsys):
    asked = config(tuning)
    record = run(asked, tune)
    assert (record["exit_code"], record["stages"][-1]["name"]) == (0, "tune")
    found = record["tuning"]
    assert len(found["trials"]) == len(records(asked)) == 6
    best = found["trials"][0]
    assert best["state"] == "finished"
    assert best["values"]["train.learning_rate"] > 1e-4
    if tuning["search"] == "optuna":
        assert {trial["state"] for trial in found["trials"]} == {"finished"}
    else:
        assert any(trial["state"] == "running" and trial["epochs"] < 6 for trial in found["trials"])
    said = capsys.readouterr().err
    assert "next: nightshift train CONFIG --trial best" in said

    plain = run(asked, train)
    poor = read_beside(store_of(asked), "tiny", plain["model"].partition("@")[2], "training.json")["history"][-1]
    tuned = run(asked, train, trial="best")
    good = read_beside(store_of(asked), "tiny", tuned["model"].partition("@")[2], "training.json")["history"]
    assert poor["val_top1"] < 0.8
    assert good[-1]["val_top1"] > 0.9
    # The record is all that is needed to have the same score again.
    replayed = records(asked)[best["trial"]]["history"]
    keys = ("train_loss", "val_loss", "train_top1", "val_top1", "learning_rate")
    assert [[epoch[key] for key in keys] for epoch in good] == [[epoch[key] for key in keys] for epoch in replayed]
    assert good[-1]["val_loss"] == best["score"]


def test_a_rerun_reads_what_is_on_record(ray_session, config, monkeypatch):
    asked = config({"trials": 3})
    first = run(asked, tune)["tuning"]
    times = {path: path.stat().st_mtime_ns for path in Path(asked.store).glob("trainings/*/trials/*.json")}
    finished = {trial["trial"] for trial in first["trials"] if trial["state"] == "finished"}
    again = run(asked, tune)["tuning"]
    for path, at in times.items():
        if path.stem in finished:
            assert path.stat().st_mtime_ns == at
    assert {trial["trial"] for trial in again["trials"]} == {trial["trial"] for trial in first["trials"]}
    assert again["trials"][0] == first["trials"][0]


def test_trials_that_diverge_are_told_and_nothing_of_ray_is_left(ray_session, config, capsys):
    asked = config({"space": {"train.learning_rate": [1e-2, 1e30]}, "trials": 6, "scheduler": "none"})
    record = run(asked, tune)
    assert {trial["state"] for trial in record["tuning"]["trials"]} == {"finished", "diverged"}
    assert record["tuning"]["trials"][0]["values"] == {"train.learning_rate": 1e-2}
    assert "1 diverged" in capsys.readouterr().err
    files = [path.name for path in Path(asked.store).rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt"))]
    assert not list(Path("/tmp").glob("nightshift-tune-*"))


@pytest.fixture
def recorded(monkeypatch):
    """Stands where the trials are run: they ended as they are given."""

    def give(*ends):
        def tune_over(task, key, settings, told):
            trials = [Trial(key, values) for values, *_ in ends]
            store, given_up = open_storage(task.store, task.storage), {}
            for trial, (_, state, loss) in zip(trials, ends, strict=True):
                if state == "failed":
                    given_up[trial.id] = "the worker was lost"
                    continue
                epoch = {"epoch": 1, "train_loss": 1.0, "train_top1": 0.5, "val_loss": loss, "val_top1": 0.5}
                write_trial(store, trial, [epoch], state, "training diverged: nan" if state == "diverged" else "")
            return Trials(trials, given_up)

        monkeypatch.setattr("cluster.tuner.tune_over", tune_over)

    return give


def rate(value):
    return {"train.learning_rate": value}


def test_all_trials_diverging_is_said_with_the_first_error(config, recorded):
    recorded((rate(1.0), "diverged", 9.0), (rate(0.9), "diverged", 9.0))
    record = run(config(), tune)
    assert record["exit_code"] == 2
    assert "no trial came to its end; the first said: training diverged: nan" in record["outcome"]


def test_trials_that_could_not_be_run_are_told_and_make_the_run_incomplete(config, recorded, capsys):
    recorded((rate(1e-2), "finished", 0.1), (rate(1e-3), "failed", 0.0))
    record = run(config(), tune)
    assert record["exit_code"] == 3
    assert "1 trial could not be run to the end; the same command tries again" in record["outcome"]
    assert "the worker was lost" in record["outcome"]
    assert [trial["state"] for trial in record["tuning"]["trials"]] == ["finished", "failed"]
    assert "0 diverged and 1 failed" in capsys.readouterr().err


def test_what_earlier_runs_found_counts_too(config, recorded, capsys):
    recorded((rate(1e-2), "finished", 0.1))
    run(config(), tune)
    recorded((rate(1e-3), "finished", 0.2))
    wider = {"space": {"train.learning_rate": {"min": 1e-8, "max": 1, "log": True}}}
    again = config(wider, learning_rate=1e-2)  # neither the range nor the value to start from makes it another tuning
    found = run(again, tune)["tuning"]["trials"]
    assert [trial["values"] for trial in found] == [rate(1e-2), rate(1e-3)]
    assert run(config({"space": {"train.batch_size": [4, 8]}}), train, trial="best")["exit_code"] == 2


def test_a_best_value_at_the_border_is_warned_of(config, recorded, capsys):
    recorded((rate(0.9), "finished", 0.1), (rate(1e-3), "finished", 0.2), (rate(0.9), "finished", 0.1))
    record = run(config(), tune)
    assert [trial["score"] for trial in record["tuning"]["trials"]] == [0.1, 0.2]  # equal values are one trial
    assert (
        "warning: train.learning_rate 0.9 lies at the upper end of what was tried (1e-07 to 1)"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("tuning", "settings", "words"),
    [
        ({"space": {}}, {}, "tune.space is empty"),
        ({}, {"mode": "none"}, "there is no training to tune"),
        ({"metric": "map"}, {}, "map is for multi-label models"),
    ],
)
def test_what_cannot_be_tuned_is_refused(config, tuning, settings, words):
    record = run(config(tuning, **settings), tune)
    assert record["exit_code"] == 2
    assert words in record["outcome"]


def test_a_value_that_cannot_be_is_refused_before_anything_runs(config):
    with pytest.raises(ValueError, match=r"tune.space: train.batch_size cannot be 0"):
        config({"space": {"train.batch_size": [8, 0]}})


def test_a_trial_that_is_not_there_is_refused(config):
    assert "not tuned yet" in run(config(), train, trial="best")["outcome"]


def test_a_worker_that_is_killed_is_replaced_and_its_trial_goes_on(ray_session, config):
    """The trial's record says where it was; its worker is found by the name that Ray gives it."""
    asked = config({"trials": 2, "scheduler": "none", "space": {"train.learning_rate": [1e-2]}}, epochs=150)
    killed = []

    def kill():
        while not killed:
            started = [r for r in records(asked).values() if 2 < len(r["history"]) < 100]
            pids = (
                [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_trial(p)] if started else []
            )
            for pid in pids[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    record = run(asked, tune)
    assert killed
    assert record["exit_code"] == 0
    assert [trial["state"] for trial in record["tuning"]["trials"]] == ["finished"]
    assert record["tuning"]["trials"][0]["epochs"] == 150


def _is_trial(process: Path) -> bool:
    try:
        return b"ImplicitFunc" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def test_folds_say_how_good_a_recipe_is_and_how_much_is_chance(ray_session, config, capsys):
    asked = config(learning_rate=1e-2, folds=3, epochs=4)
    record = run(asked, train)
    assert record["exit_code"] == 0
    folds = record["folds"]["folds"]
    assert [fold["fold"] for fold in folds] == [0, 1, 2]
    assert sum(fold["num_val"] for fold in folds) == 3 * (14 + 5)  # all but the test images
    shares = [fold["val_top1"] for fold in folds]
    assert record["folds"]["mean"]["val_top1"] == pytest.approx(sum(shares) / 3)
    assert "3 folds of 57 images, each held out once: top-1" in capsys.readouterr().err
    version = record["model"].partition("@")[2]
    assert read_beside(store_of(asked), "tiny", version, "folds.json") == record["folds"]
    # The training that is sealed is the same as without folds.
    assert "is finished already" in (run(config(learning_rate=1e-2, epochs=4), train), capsys.readouterr().err)[1]
    # What the folds found stands in the store: asked again nothing is trained.
    times = {path: path.stat().st_mtime_ns for path in Path(asked.store).glob("trainings/*/folds/*.json")}
    assert len(times) == 3
    assert run(asked, train)["folds"] == record["folds"]
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_folds_of_a_finished_training_are_trained_too(config, ray_session, capsys):
    run(config(learning_rate=1e-2, epochs=2), train)
    record = run(config(learning_rate=1e-2, epochs=2, folds=2), train)
    assert "is finished already" in capsys.readouterr().err
    assert len(record["folds"]["folds"]) == 2


def test_a_trial_without_a_training_is_refused(config):
    assert "nothing is trained with its values" in run(config(mode="none"), train, trial="best")["outcome"]


def test_the_spread_is_that_of_a_sample():
    folds = [{"val_loss": loss, "val_top1": 0.5} for loss in (1.0, 2.0, 3.0)]
    assert crossing._spread(folds) == {
        "mean": {"val_loss": 2.0, "val_top1": 0.5}, "deviation": {"val_loss": 1.0, "val_top1": 0.0},
    }  # fmt: skip
