import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import RayError

from cluster import trainer
from cluster.board import Board
from pipeline.errors import InputError, ModelError, NightshiftError, UsageError
from pipeline.fitting import fit
from pipeline.storage import open_storage
from pipeline.training import Seat

# Ray Train makes a DataContext, and that warns of defaults of its own: nothing that we could set (Ray 2.60).
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")

SCRATCH = {"mode": "scratch", "epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "workers": 2}
LINEAR = {"builder": "linear", "transforms": {"resize_px": 9, "crop_px": 8}}


@pytest.fixture
def make(tmp_path, class_folders, training_task):
    """Return a task on 42 training and 15 validation pictures, in a store of its own."""

    def task(train=SCRATCH, model=LINEAR, where="store"):
        images = tmp_path / "images"
        if not images.exists():
            class_folders(images)
        return training_task(images, tmp_path / where, train, model)

    return task


def in_this_process(task):
    return fit(task, Seat(), lambda module: module, lambda count: None)


# The board, and what the driver makes of it


def test_the_board_adds_up_what_its_posters_have_done():
    board = Board()
    board.post("0", 5)
    board.post("1", 7)
    board.post("0", 6)
    assert board.read() == (13, None)


def test_the_first_refusal_stays_on_the_board():
    board = Board()
    board.refuse(ModelError("first"))
    board.refuse(ModelError("second"))
    assert str(board.read()[1]) == "first"


class Posted:
    """A board as a poster sees it."""

    def __init__(self):
        self.posts = []
        self.post = SimpleNamespace(remote=lambda name, done: self.posts.append((name, done)))


def test_a_poster_posts_now_and_then_and_at_its_end(monkeypatch):
    monkeypatch.setattr(trainer.ray, "get", lambda future: future)
    now = [100.0]
    monkeypatch.setattr(trainer, "monotonic", lambda: now[0])
    board = Posted()
    poster = trainer._Poster(board, 3)
    for _ in range(4):
        poster(10)
        now[0] += trainer.LOOK_EVERY_S * 0.4
    assert board.posts == [("3", 10), ("3", 40)]
    poster(5)
    poster.post()
    assert board.posts[-1] == ("3", 45)


@pytest.fixture
def acted(ray_session, monkeypatch):
    """Let a function of the board and the outcome stand for Ray Train, and look often."""
    monkeypatch.setattr(trainer, "LOOK_EVERY_S", 0.02)

    def act(part):
        monkeypatch.setattr(trainer, "_fit", lambda task, board, outcome: part(board, outcome))

    return act


TASK = SimpleNamespace(train=SimpleNamespace(gpus_per_worker=0, workers=2))


class Bar:
    """What a progress bar was told."""

    def __init__(self):
        self.steps, self.changed = [], threading.Event()

    def __call__(self, count):
        self.steps.append(count)
        self.changed.set()

    def wait_for(self, total):
        """Wait until the bar stands at a total."""
        end = time.monotonic() + 60
        while sum(self.steps) != total:
            assert time.monotonic() < end, self.steps
            self.changed.wait(1)
            self.changed.clear()


def test_the_bar_starts_at_what_an_earlier_run_did_and_ends_at_the_total(acted):
    """Also when a worker dies: Ray Train starts the group again, and the epoch is counted again."""
    bar = Bar()

    def part(board, outcome):
        for name, done, stands_at in (("0", 100, 0), ("0", 140, 40), ("1", 30, 70), ("1", 0, 40), ("0", 100, 0)):
            ray.get(board.post.remote(name, done))
            bar.wait_for(stands_at)
        for name, done in (("0", 200), ("1", 100)):
            ray.get(board.post.remote(name, done))
        outcome.append(None)

    acted(part)
    trainer.train(TASK, 100, bar)
    assert sum(bar.steps) == 200


def test_a_refusal_is_raised_as_it_is(acted):
    def part(board, outcome):
        ray.get(board.refuse.remote(ModelError("weights do not fit")))
        outcome.append(None)

    acted(part)
    with pytest.raises(ModelError, match=r"^weights do not fit$"):
        trainer.train(TASK, 0, Bar())


def test_workers_that_wait_for_one_that_refused_alone_do_not_hold_the_driver(acted, monkeypatch):
    monkeypatch.setattr(trainer, "END_S", 0.1)
    end = threading.Event()

    def part(board, outcome):
        ray.get(board.refuse.remote(ModelError("no such weights on this machine")))
        end.wait(60)

    acted(part)
    with pytest.raises(ModelError, match="on this machine"):
        trainer.train(TASK, 0, Bar())
    assert not end.is_set()
    end.set()


def test_what_ray_train_ends_with_is_explained(acted):
    acted(lambda board, outcome: outcome.append(RuntimeError("worker 1 died\nlong story")))
    with pytest.raises(NightshiftError, match="RuntimeError: worker 1 died; the same command continues"):
        trainer.train(TASK, 0, Bar())


def test_whatever_ray_train_raises_reaches_the_driver(ray_session, monkeypatch):
    """Ray's own TrainingFailedError is neither a RayError nor a RuntimeError."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    def fail(*arguments, **named):
        raise WorkerGroupError("two workers died", {0: ValueError("no such file\nlong story")})

    monkeypatch.setattr("ray.train.torch.TorchTrainer", fail)
    settings = SimpleNamespace(gpus_per_worker=0, workers=1, max_failures=0)
    with pytest.raises(NightshiftError, match=r"failed on 1 worker\(s\): ValueError: no such file; the same command"):
        trainer.train(SimpleNamespace(train=settings, run_key="k"), 0, Bar())


def test_more_workers_than_the_session_has_cpus_are_refused_at_once(ray_session):
    many = SimpleNamespace(train=SimpleNamespace(gpus_per_worker=0, workers=64))
    with pytest.raises(UsageError, match=r"64 worker\(s\) of 1 CPU and 0 GPU do not fit"):
        trainer.train(many, 0, Bar())


def caused(error, cause):
    error.__cause__ = cause
    return error


def failed(*failures):
    """What Ray Train raises: errors by rank."""
    error = RuntimeError("training failed")
    error.worker_failures = dict(enumerate(failures))
    return error


OURS = InputError("no column")
WRAPPED = RuntimeError("wrapped")
WRAPPED.cause = OURS


@pytest.mark.parametrize(
    "error",
    [OURS, failed(OURS), failed(WRAPPED), failed(caused(RayError("task"), OURS)), failed(OSError("x"), OURS)],
    ids=["itself", "by rank", "as its cause", "chained", "on another rank"],
)
def test_our_own_error_is_found_in_whatever_ray_wrapped_it(error):
    assert trainer._explained(error) is OURS


def test_other_errors_are_named_by_type_and_first_line():
    explained = trainer._explained(failed(OSError("disk full\n  at line 7"), MemoryError()))
    assert type(explained) is NightshiftError
    assert str(explained).startswith("training failed on 2 worker(s): OSError: disk full; the same command continues")
    assert "MemoryError: ;" in str(trainer._explained(MemoryError()))


# Ray Train itself, which takes long to start


def test_two_workers_train_what_one_process_trains(ray_session, make):
    expected = in_this_process(make(where="alone"))
    task, bar = make(where="ray"), Bar()
    trainer.train(task, 0, bar)
    assert sum(bar.steps) == 42 * 3
    store = open_storage(task.store, task.storage)
    result = read_result(store)
    for ours, theirs in zip(result["history"], expected["history"], strict=True):
        for key in ("train_loss", "train_top1", "val_loss", "val_top1"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4)
    assert (result["num_train"], result["num_val"]) == (42, 15)
    assert store.stat(f"models/model/{result['version']}/weights.safetensors").size_bytes > 0


def read_result(store):
    from pipeline.documents import read_document

    return read_document(store, "trainings/key/result.json")


def test_a_model_error_is_raised_after_one_attempt(ray_session, make, tmp_path, monkeypatch):
    """It would come again: weights that do not fit are no accident."""
    import torch
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.zeros(3, 192)}, tmp_path / "w.safetensors")
    model = LINEAR | {"weights": str(tmp_path / "w.safetensors")}
    task = make(SCRATCH | {"mode": "finetune", "max_failures": 2}, model)
    refusals, real = [], trainer._fit

    def watched(task, board, outcome):
        real(task, board, outcome)
        refusals.append(outcome[0])

    monkeypatch.setattr(trainer, "_fit", watched)
    with pytest.raises(ModelError, match=r"does not fit Linear: lacks fc.bias \(and 0 more\)"):
        trainer.train(task, 0, Bar())
    assert refusals == [None]  # for Ray Train it ended well: nothing was tried again
    assert list(open_storage(task.store, task.storage).list("trainings")) == []


def descendants():
    """Return pid and title of every process that this one started, directly or not."""
    children, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                titles[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it ended meanwhile
                continue
            children.setdefault(parent, []).append(int(folder.name))
    found, todo = {}, [os.getpid()]
    while todo:
        for pid in children.get(todo.pop(), []):
            found[pid] = titles[pid]
            todo.append(pid)
    return found


@pytest.mark.chaos
def test_a_worker_killed_in_an_epoch_costs_that_epoch_and_nothing_else(ray_session, make):
    train = SCRATCH | {"epochs": 60}
    whole, killed = make(train, where="whole"), make(train, where="killed")
    trainer.train(whole, 0, Bar())
    victims, finished = [], []

    def kill():
        folder, end = Path(killed.store) / "trainings/key", time.monotonic() + 240
        while not list(folder.glob("epoch-*.json")):
            assert time.monotonic() < end
            time.sleep(0.01)
        victims.extend(pid for pid, title in descendants().items() if "RayTrainWorker" in title)
        os.kill(victims[-1], signal.SIGKILL)
        finished.append((folder / "result.json").exists())

    killer = threading.Thread(target=kill)
    killer.start()
    bar = Bar()
    trainer.train(killed, 0, bar)
    killer.join()
    assert (len(victims), finished) == (2, [False])
    assert sum(bar.steps) == 42 * 60
    results = [read_result(open_storage(task.store, task.storage)) for task in (whole, killed)]
    assert results[0]["version"] == results[1]["version"]
    assert [r["train_loss"] for r in results[0]["history"]] == [r["train_loss"] for r in results[1]["history"]]
