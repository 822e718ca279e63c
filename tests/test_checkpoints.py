import json
import threading

import pytest
import torch

from pipeline.checkpoints import Checkpoints
from pipeline.errors import StorageError
from pipeline.storage import open_storage

KEEP = 2


@pytest.fixture
def store(tmp_path, storage_settings):
    return open_storage(str(tmp_path), storage_settings)


@pytest.fixture
def checkpoints(store):
    return Checkpoints(store, "k", KEEP)


def tensors(step):
    return {"model.weight": torch.full((3, 4), float(step)), "optimizer.0.step": torch.tensor(step)}


def document(step):
    return {"examples": 16 * step, "history": [{"train_loss": 1 / (step + 3)}]}


def save_steps(checkpoints, *steps):
    for step in steps:
        checkpoints.save(step, document(step), tensors(step))
    checkpoints.settle()


def assert_newest(checkpoints, step):
    found = checkpoints.newest()
    assert found.step == step
    assert {key: found.document[key] for key in document(step)} == document(step)
    assert found.tensors.keys() == tensors(step).keys()
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in tensors(step).items())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(store, keep):
    checkpoints = Checkpoints(store, "k", keep)
    save_steps(checkpoints, *range(7, 100, 8))
    names = [f"trainings/k/step-{step:09d}" for step in list(range(7, 100, 8))[-keep:]]
    expected = sorted(name + suffix for name in names for suffix in (".json", ".safetensors"))
    assert [entry.path for entry in store.list()] == expected
    assert_newest(checkpoints, 95)


def test_nothing_saved_is_no_checkpoint(checkpoints):
    assert checkpoints.newest() is None
    assert checkpoints.progress() is None


def test_what_is_saved_is_what_was_there_when_saving_began(checkpoints):
    changing = tensors(5)
    checkpoints.save(5, document(5), changing)
    for tensor in changing.values():
        tensor.fill_(99)
    checkpoints.settle()
    assert_newest(checkpoints, 5)


def test_training_goes_on_while_a_checkpoint_is_written(checkpoints, store, monkeypatch):
    write, go_on = store.write, threading.Event()

    def slowly(path, data):
        assert go_on.wait(60)
        return write(path, data)

    monkeypatch.setattr(store, "write", slowly)
    checkpoints.save(5, document(5), tensors(5))
    assert checkpoints.newest() is None
    go_on.set()
    checkpoints.settle()
    assert_newest(checkpoints, 5)


@pytest.mark.parametrize("ending", ["save", "settle", "finish"])
def test_a_checkpoint_that_could_not_be_written_is_an_error_soon(checkpoints, store, monkeypatch, ending):
    def refuse(path, data):
        raise StorageError("no permission")

    with monkeypatch.context() as patched:
        patched.setattr(store, "write", refuse)
        checkpoints.save(5, document(5), tensors(5))
        endings = {
            "save": lambda: checkpoints.save(6, document(6), tensors(6)),
            "settle": checkpoints.settle,
            "finish": lambda: checkpoints.finish({}),
        }
        with pytest.raises(StorageError, match="no permission"):
            endings[ending]()
    assert list(store.list()) == []
    save_steps(checkpoints, 7)
    assert_newest(checkpoints, 7)


def test_a_checkpoint_without_its_json_does_not_exist(checkpoints, store):
    save_steps(checkpoints, 1, 2)
    store.delete("trainings/k/step-000000002.json")
    assert checkpoints.progress()["examples"] == 16
    assert_newest(checkpoints, 1)


def flip(store, path):
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.write(path, bytes(data))


DAMAGES = {
    "a flipped bit": lambda store, name: flip(store, f"{name}.safetensors"),
    "cut weights": lambda store, name: store.write(f"{name}.safetensors", store.read(f"{name}.safetensors")[:50]),
    "empty weights": lambda store, name: store.write(f"{name}.safetensors", b""),
    "no weights": lambda store, name: store.delete(f"{name}.safetensors"),
    "cut document": lambda store, name: store.write(f"{name}.json", store.read(f"{name}.json")[:20]),
    "not text": lambda store, name: store.write(f"{name}.json", b"\xff\xfe"),
    "no object": lambda store, name: store.write(f"{name}.json", b"[]"),
    "an older format": lambda store, name: store.write(f"{name}.json", json.dumps({"history": []}).encode()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(checkpoints, store, damage):
    save_steps(checkpoints, *range(1, 6))
    damage(store, "trainings/k/step-000000005")
    assert_newest(checkpoints, 4)
    damage(store, "trainings/k/step-000000004")
    assert checkpoints.newest() is None


def test_a_store_that_cannot_be_read_is_an_error_and_no_fresh_start(checkpoints, store, monkeypatch):
    """One worker of several must not start over alone."""
    save_steps(checkpoints, 1, 2)

    def refuse(path, version=None):
        raise StorageError("permission denied")

    monkeypatch.setattr(store, "read", refuse)
    with pytest.raises(StorageError):
        checkpoints.newest()


def test_clearing_forgets_everything_and_others_nothing(checkpoints, store):
    save_steps(checkpoints, 1, 2, 3)
    checkpoints.finish({"version": "v"})
    other = Checkpoints(store, "k2")
    other.finish({"version": "w"})
    checkpoints.clear()
    assert [entry.path for entry in store.list()] == ["trainings/k2/result.json"]
    assert checkpoints.newest() is None


def test_clearing_that_is_killed_at_any_point_leaves_whole_checkpoints_only(checkpoints, store, monkeypatch):
    save_steps(checkpoints, 1, 2, 3)
    delete = store.delete

    def delete_one(path):
        delete(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "delete", delete_one)
    for _ in range(KEEP):
        assert checkpoints.newest().step == 3
        with pytest.raises(KeyboardInterrupt):
            checkpoints.clear()
    monkeypatch.undo()
    assert checkpoints.newest() is None
    assert {entry.path.rsplit(".")[-1] for entry in store.list()} == {"safetensors"}
    save_steps(checkpoints, 1, 2)
    assert_newest(checkpoints, 2)
