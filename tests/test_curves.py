import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.curves import EVENTS, JSON, Curves, event_file
from pipeline.errors import StorageError
from pipeline.pulse import Pulse
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

HISTORY = [
    {"epoch": 1, "train_loss": 1.5, "val_loss": None, "train_top1": 0.25, "val_top1": None, "learning_rate": 0.5, "seconds": 10.0},
    {"epoch": 2, "train_loss": 0.5, "val_loss": 0.75, "train_top1": 0.5, "val_top1": 0.5, "learning_rate": 0.25, "seconds": 20.0},
]  # fmt: skip


def read(folder) -> dict:
    """Read a folder as TensorBoard does."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value, event.wall_time) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written(tmp_path):
    (tmp_path / EVENTS).write_bytes(event_file(HISTORY, 1000.0))
    found = read(tmp_path)
    assert found["loss/training"] == [(1, 1.5, 1010.0), (2, 0.5, 1030.0)]
    assert found["loss/validation"] == [(2, 0.75, 1030.0)]
    assert found["learning_rate"] == [(1, 0.5, 1010.0), (2, 0.25, 1030.0)]
    assert found.keys() == {
        "loss/training", "loss/validation", "accuracy/training", "accuracy/validation", "learning_rate", "seconds_per_epoch",
    }  # fmt: skip


def test_who_looks_on_goes_on_reading(tmp_path):
    store = open_storage(str(tmp_path), StorageSettings())
    curves = Curves(store, "2026-11-24T00:00:00+00:00", Pulse())
    curves.write("t", HISTORY[:1])
    events = EventAccumulator(str(tmp_path / "t")).Reload()
    curves.write("t", HISTORY)
    assert [event.step for event in events.Reload().Scalars("loss/training")] == [1, 2]
    assert json.loads((tmp_path / "t" / JSON).read_text()) == {"history": HISTORY}


def test_a_store_that_refuses_stops_no_training(tmp_path, monkeypatch):
    pulse, store = Pulse(), open_storage(str(tmp_path), StorageSettings())
    curves = Curves(store, "2026-11-24T00:00:00+00:00", pulse)

    def refuse(path, data):
        raise StorageError("no")

    monkeypatch.setattr(store, "write", refuse)
    for _ in range(2):
        curves.write("t", HISTORY)
    assert pulse.warnings == ["curves: they cannot be written, and training goes on: no"]


@pytest.mark.parametrize("history", [[], HISTORY])
def test_the_start_of_a_file_stays_as_long(history):
    assert len(event_file(HISTORY[:1], 1.0)) < len(event_file(HISTORY, 2.0))
    assert len(event_file(history, 1.0)) == len(event_file(history, 99.0))
