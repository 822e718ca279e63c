import json

import pytest
import torch
from torch import nn

from pipeline.checkpoints import KEEP, Checkpoints
from pipeline.errors import StorageError
from pipeline.storage import open_storage


@pytest.fixture
def store(tmp_path, storage_settings):
    return open_storage(str(tmp_path), storage_settings)


@pytest.fixture
def checkpoints(store):
    return Checkpoints(store, "k")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step(net, optimizer, number):
    torch.manual_seed(number)
    optimizer.zero_grad()
    net(torch.randn(6, 3)).square().sum().backward()
    optimizer.step()


def history(epochs):
    return [{"epoch": epoch + 1, "train_loss": 1 / (epoch + 3)} for epoch in range(epochs)]


OPTIMIZERS = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-3),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9, nesterov=True),
    "sgd_without_momentum": lambda net: torch.optim.SGD(net.parameters(), 1e-2),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_going_on_from_a_checkpoint_is_bit_for_bit_going_on(checkpoints, make_optimizer):
    net = network()
    optimizer = make_optimizer(net)
    for number in range(3):
        step(net, optimizer, number)
    checkpoints.save(net, optimizer, history(3))

    checkpoint = checkpoints.newest()
    other = network()
    other_optimizer = make_optimizer(other)
    other.load_state_dict(checkpoint.model)
    other_optimizer.load_state_dict(checkpoint.optimizer)
    assert (checkpoint.epochs_done, checkpoint.history) == (3, history(3))
    for number in range(3, 6):
        step(net, optimizer, number)
        step(other, other_optimizer, number)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def save_epochs(checkpoints, epochs):
    """Save after each epoch and return the weights that each checkpoint must hold."""
    net = network()
    optimizer = OPTIMIZERS["adam"](net)
    weights = {}
    for epoch in range(1, epochs + 1):
        step(net, optimizer, epoch)
        checkpoints.save(net, optimizer, history(epoch))
        weights[epoch] = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    return weights


def assert_newest(checkpoints, epoch, weights):
    found = checkpoints.newest()
    assert (found.epochs_done, found.history) == (epoch, history(epoch))
    assert all(torch.equal(found.model[key], tensor) for key, tensor in weights[epoch].items())


def test_only_the_newest_are_kept(checkpoints, store):
    weights = save_epochs(checkpoints, 12)
    names = [entry.path for entry in store.list()]
    expected = [f"trainings/k/epoch-{epoch:05d}" for epoch in range(13 - KEEP, 13)]
    assert names == sorted(name + suffix for name in expected for suffix in (".json", ".safetensors"))
    assert checkpoints.epochs_done() == 12
    assert_newest(checkpoints, 12, weights)


def test_nothing_saved_is_no_checkpoint(checkpoints):
    assert checkpoints.newest() is None
    assert checkpoints.epochs_done() == 0


def test_a_checkpoint_without_its_json_does_not_exist(checkpoints, store):
    weights = save_epochs(checkpoints, 2)
    store.delete("trainings/k/epoch-00002.json")
    assert checkpoints.epochs_done() == 1
    assert_newest(checkpoints, 1, weights)


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
    weights = save_epochs(checkpoints, 5)
    damage(store, "trainings/k/epoch-00005")
    assert_newest(checkpoints, 4, weights)
    damage(store, "trainings/k/epoch-00004")
    assert checkpoints.newest() is None


def test_a_store_that_cannot_be_read_is_an_error_and_no_fresh_start(checkpoints, store, monkeypatch):
    """One worker of several must not start over alone."""
    save_epochs(checkpoints, 2)

    def refuse(path, version=None):
        raise StorageError("permission denied")

    monkeypatch.setattr(store, "read", refuse)
    with pytest.raises(StorageError):
        checkpoints.newest()


def test_clearing_forgets_everything_and_others_nothing(checkpoints, store):
    save_epochs(checkpoints, 3)
    checkpoints.finish({"version": "v"})
    other = Checkpoints(store, "k2")
    other.finish({"version": "w"})
    checkpoints.clear()
    assert [entry.path for entry in store.list()] == ["trainings/k2/result.json"]
    assert checkpoints.newest() is None


def test_clearing_that_is_killed_at_any_point_leaves_whole_checkpoints_only(checkpoints, store, monkeypatch):
    weights = save_epochs(checkpoints, 3)
    delete = store.delete

    def delete_one(path):
        delete(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "delete", delete_one)
    for _ in range(KEEP):
        found = checkpoints.newest()
        assert found.epochs_done == checkpoints.epochs_done() == 3
        with pytest.raises(KeyboardInterrupt):
            checkpoints.clear()
    monkeypatch.undo()
    assert checkpoints.newest() is None
    assert {entry.path.rsplit(".")[-1] for entry in store.list()} == {"safetensors"}
    save_epochs(checkpoints, 2)
    assert_newest(checkpoints, 2, weights)
