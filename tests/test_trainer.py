import os
import re
import signal
import threading
import time
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, RayTaskError

from cluster import trainer as module
from cluster.resources import Size
from cluster.slowranks import WINDOW_S, SlowRanks
from cluster.trainer import Trainer, _LostError, _Progress, _raise_failure, _Watch
from cluster.workergroup import Standing, WorkerGroup
from pipeline.documents import read_document
from pipeline.errors import InputError, ModelError, NightshiftError, TransientError, UsageError
from pipeline.fitting import fit
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.storage import open_storage

SCRATCH = {"mode": "scratch", "epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "workers": 2}
LONG = SCRATCH | {"epochs": 60, "checkpoint_steps": 7}
LINEAR = {"builder": "linear", "transforms": {"resize_px": 9, "crop_px": 8}}
NUM_TRAIN = 42


@pytest.fixture
def make(tmp_path, class_folders, training_task):
    """Return a task on 42 training and 15 validation pictures, in a store of its own."""

    def task(train=SCRATCH, model=LINEAR, where="store"):
        images = tmp_path / "images"
        if not images.exists():
            class_folders(images)
        return training_task(images, tmp_path / where, train, model)

    return task


@pytest.fixture
def told():
    return []


@pytest.fixture
def trainer(ray_session, told, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.05)
    with Trainer(told.append) as trainer:
        yield trainer


def ignore(count):
    pass


def result_of(task):
    return read_document(open_storage(task.store, task.storage), "trainings/key/result.json")


def pids(trainer):
    return [int(re.search(r"worker (\d+) at", name)[1]) for name in trainer._group.names]


# Training


def test_two_workers_train_what_one_process_trains(trainer, make, told):
    expected = fit(make(where="alone"), Seat(), lambda module: module, Pulse())
    task, steps = make(where="ray"), []
    trainer.train(task, 0, steps.append)
    assert sum(steps) == NUM_TRAIN * 3
    result = result_of(task)
    for ours, theirs in zip(result["history"], expected["history"], strict=True):
        for key in ("train_loss", "train_top1", "val_loss", "val_top1"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4)
    assert (result["num_train"], result["num_val"], result["workers"]) == (NUM_TRAIN, 15, 2)
    weights = Path(task.store) / f"models/model/{result['version']}/weights.safetensors"
    assert weights.stat().st_size > 0
    assert told == []


def test_a_second_training_finds_the_workers_of_the_first(trainer, make):
    for number, where in enumerate(("first", "second")):
        trainer.train(make(where=where), 0, ignore)
        if number == 0:
            workers = pids(trainer)
    assert pids(trainer) == workers
    assert len(set(workers)) == 2
    trainer.train(make(SCRATCH | {"workers": 1}, where="third"), 0, ignore)
    assert len(pids(trainer)) == 1
    assert not set(workers) & set(pids(trainer))


def test_a_worker_has_the_cpus_it_is_given(trainer, make):
    trainer.train(make(SCRATCH | {"workers": 1}), 0, ignore)
    first = pids(trainer)
    trainer.train(make(SCRATCH | {"workers": 1, "cpus_per_worker": 3, "epochs": 4}, where="larger"), 0, ignore)
    assert pids(trainer) != first
    assert trainer._group.size == Size(3)
    end = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 1:  # of the session's four
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_end_with_the_block(ray_session, make):
    with Trainer(ignore) as trainer:
        trainer.train(make(), 0, ignore)
        workers = pids(trainer)
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_a_worker_warns_of_is_told_once(trainer, make, told, tmp_path):
    """The same picture under three labels: nobody can learn that by heart."""
    task = make(SCRATCH | {"epochs": 8})
    pictures = sorted((tmp_path / "images/train").glob("*/*.png"))
    for picture in pictures:
        picture.write_bytes(pictures[0].read_bytes())
    trainer.train(make(SCRATCH | {"epochs": 8}, where="muddled"), 0, ignore)
    assert len([words for words in told if words.startswith("warning: by-heart: 20 images cannot be learnt")]) == 1
    assert task.train.sanity


def test_more_workers_than_the_session_has_cpus_are_refused_at_once(trainer, make):
    with pytest.raises(UsageError, match=r"64 worker\(s\) of 1 CPU and 0 GPU do not fit"):
        trainer.train(make(SCRATCH | {"workers": 64, "lanes": 64, "batch_size": 64}), 0, ignore)
    with pytest.raises(UsageError, match=r"2 worker\(s\) of 3 CPU and 0 GPU do not fit"):
        trainer.train(make(SCRATCH | {"cpus_per_worker": 3}), 0, ignore)


def test_as_many_workers_train_as_there_is_room_for(trainer, make, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 2.0)
    task = make(SCRATCH | {"workers": {"min": 1, "max": 8}})
    with closing(WorkerGroup(2, Size(1), 30.0)):  # of the session's four CPUs
        trainer.train(task, 0, ignore)
    assert result_of(task)["workers"] == 2


def test_no_room_for_any_is_said_after_a_while(trainer, make, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_S", 0.5)
    monkeypatch.setattr(module, "ROOM_S", 1.0)
    with (
        closing(WorkerGroup(4, Size(1), 30.0)),
        pytest.raises(TransientError, match=r"no room for train.workers \(2\) of 1 CPU"),
    ):
        trainer.train(make(), 0, ignore)


# Faults


def test_a_model_error_is_raised_after_one_attempt(trainer, make, tmp_path, told):
    """It would come again: weights that do not fit are no accident."""
    import torch
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.zeros(3, 192)}, tmp_path / "w.safetensors")
    task = make(SCRATCH | {"mode": "finetune"}, LINEAR | {"weights": str(tmp_path / "w.safetensors")})
    with pytest.raises(ModelError, match=r"does not fit Linear: lacks fc.bias \(and 0 more\)"):
        trainer.train(task, 0, ignore)
    assert told == []
    assert list(open_storage(task.store, task.storage).list("trainings")) == []


@pytest.fixture(scope="module")
def undisturbed():
    """What LONG comes to when nothing happens, once a test has trained it."""
    return {}


@pytest.fixture
def whole(undisturbed, trainer, make):
    if not undisturbed:
        task = make(LONG, where="whole")
        trainer.train(task, 0, ignore)
        undisturbed.update(result_of(task))
    return undisturbed


def faulted(trainer, make, fault, **settings):
    """Train with a fault after the first checkpoint; return the result and the bar's steps."""
    hurt = make(LONG | settings, where="hurt")
    finished, steps, folder = [], [], Path(hurt.store) / "trainings/key"

    def strike():
        end = time.monotonic() + 120
        while not list(folder.glob("step-*.json")):
            assert time.monotonic() < end
            time.sleep(0.005)
        fault(pids(trainer))
        finished.append((folder / "result.json").exists())

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        trainer.train(hurt, 0, steps.append)
    finally:
        striker.join()
    assert finished == [False]
    return result_of(hurt), steps


def assert_equal(whole, hurt):
    assert hurt["version"] == whole["version"]  # the digest of the weights
    for key in ("train_loss", "train_top1", "val_loss", "val_top1"):
        assert [record[key] for record in hurt["history"]] == [record[key] for record in whole["history"]]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_killed_in_an_epoch_changes_nothing(whole, trainer, make, told, rank):
    hurt, steps = faulted(trainer, make, lambda workers: os.kill(workers[rank], signal.SIGKILL))
    assert_equal(whole, hurt)
    assert sum(steps) == NUM_TRAIN * LONG["epochs"]
    assert len(told) == 1
    assert re.match(
        rf"warning: rank {rank} \(worker .*training starts again from its last checkpoint \(1 of 2\)", told[0]
    )


def test_a_worker_that_hangs_is_named_and_training_starts_again(whole, trainer, make, told):
    hurt, _ = faulted(trainer, make, lambda workers: os.kill(workers[1], signal.SIGSTOP), stall_s=3)
    assert_equal(whole, hurt)
    assert len(told) == 1
    assert re.search(r"nothing went on for \d+ s \(train.stall_s\)", told[0])
    assert re.search(r"rank 1 \(worker \d+ at [^)]*\) has read \d+ batches.*: it does not answer", told[0])
    assert re.search(r"rank 0 .* has read \d+ batches.*: training for \d+ s in .*pipeline/training.py", told[0])


def test_more_failures_than_allowed_end_the_training_and_the_next_run_continues_it(whole, trainer, make, told):
    with pytest.raises(NightshiftError, match=r"training failed 1 time\(s\), the last time: rank 0 .*the same command"):
        faulted(trainer, make, lambda workers: os.kill(workers[0], signal.SIGKILL), max_failures=0)
    assert told == []
    steps, task = [], make(LONG, where="hurt")
    trainer.train(task, 0, steps.append)
    assert sum(steps) == NUM_TRAIN * LONG["epochs"]
    assert_equal(whole, result_of(task))


# What the driver makes of it


def ended(error=None):
    future = Future()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)
    return future


def task_error(cause):
    return RayTaskError("train", "traceback", cause)


NAMES = ["rank 0", "rank 1", "rank 2"]
ECHO = task_error(RuntimeError("Connection closed by peer"))
DEAD = ActorDiedError()


def test_our_own_errors_come_through_as_they_are():
    ours = InputError("no column")
    with pytest.raises(InputError) as raised:
        _raise_failure(NAMES, [ended(ECHO), ended(task_error(ours)), ended(DEAD)])
    assert raised.value is ours


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ([ECHO, DEAD, ECHO], "rank 1: ActorDiedError"),
        ([ECHO, ECHO, task_error(TransientError("throttled"))], "rank 2: TransientError: throttled"),
        ([ECHO, ECHO, ECHO], "rank 0: RuntimeError: Connection closed"),
        ([None, task_error(MemoryError("x\ny")), None], "rank 1: MemoryError: x$"),
    ],
)
def test_the_first_cause_is_named_and_not_its_echo(errors, words):
    with pytest.raises(_LostError, match=words):
        _raise_failure(NAMES, [ended(error) for error in errors])


def test_a_part_that_has_not_ended_is_no_failure():
    _raise_failure(NAMES, [Future(), ended(), ended()])


def test_the_bar_starts_at_what_an_earlier_run_did_and_may_fall_back():
    steps = []
    progress = _Progress(100, steps.append)
    for totals in ((0, 0), (100, 0), (120, 20), (0, 0), (110, 0), (130, 30)):
        progress.show([Standing(examples=total) for total in totals])
    assert steps == [0, 40, -30, 50]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def standing(steps, busy_s):
    return Standing(steps=steps, busy_s=busy_s, beats=steps)


@pytest.mark.parametrize(
    ("busy", "slow"),
    [
        ((50.0, 10.0, 10.0), [0]),
        ((10.0, 50.0), [1]),
        ((15.0, 10.0, 10.0), []),  # less than twice
        ((3.0, 1.0, 1.0), []),  # three times, of nearly nothing
        ((50.0, 50.0, 10.0, 10.0), [0, 1]),
        ((50.0, 45.0), []),
    ],
)
def test_a_rank_that_the_others_wait_for_is_found(busy, slow):
    clock = Clock()
    ranks = SlowRanks(clock)
    standings = [standing(100, seconds) for seconds in busy]
    assert ranks.found(standings) == []
    clock.now = WINDOW_S
    assert [rank for rank, _, _ in ranks.found(standings)] == slow


def test_a_slow_rank_is_named_once_with_seconds_per_step_and_also_when_it_slows_down_late():
    clock = Clock()
    ranks = SlowRanks(clock)
    clock.now = 60.0
    assert ranks.found([standing(100, 10.0), standing(100, 10.0)]) == []
    clock.now = 120.0
    assert ranks.found([standing(150, 15.0), standing(150, 60.0)]) == [(1, 1.0, 0.1)]
    clock.now = 180.0
    assert ranks.found([standing(200, 20.0), standing(200, 110.0)]) == []


def test_what_hangs_is_told_with_who_is_behind_and_what_each_does():
    group = SimpleNamespace(names=NAMES[:2], doing=lambda: ["in gather", "in backward"])
    watch = _Watch(group, 0.05)
    standings = [standing(4, 1.0), standing(5, 1.0)]
    watch.check_going(standings)
    time.sleep(0.06)
    with pytest.raises(_LostError) as raised:
        watch.check_going(standings)
    assert str(raised.value) == (
        "nothing went on for 0 s (train.stall_s); rank 0 has read 4 batches and is behind: in gather; "
        "rank 1 has read 5 batches: in backward"
    )


def test_the_start_may_take_longer_than_a_step():
    watch = _Watch(SimpleNamespace(names=NAMES[:2], doing=list), 0.01)
    for standings in ([Standing(), Standing()], [Standing(), Standing(steps=1)]):
        watch.check_going(standings)
        time.sleep(0.03)
        watch.check_going(standings)


def test_validation_is_progress_too():
    watch = _Watch(SimpleNamespace(names=NAMES[:1], doing=list), 0.05)
    for beats in range(4):
        time.sleep(0.03)
        watch.check_going([Standing(steps=4, beats=beats)])
