import hashlib
import os
import pickle

import pytest
import torch
from safetensors.torch import load
from serving import served
from torchvision import models

from pipeline import zoo
from pipeline.errors import ModelError
from pipeline.published import fetch_published, published_state
from pipeline.settings import ModelSettings, StorageSettings
from pipeline.storage import open_storage

SETTINGS = StorageSettings(max_retries=0, timeout_s=5)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Publish checkpoints on loopback, under the addresses that torchvision names; return what puts one there."""
    folder = tmp_path / "published"
    folder.mkdir()
    with served(folder) as (url, asked):

        def publish(builder, data, digest=None):
            name = f"{builder}-{(digest or hashlib.sha256(data).hexdigest())[:8]}.pth"
            (folder / name).write_bytes(data)
            weights = models.get_model_weights(builder).IMAGENET1K_V1
            monkeypatch.setattr(weights.value, "url", f"{url}/{name}")
            return name

        publish.asked = asked
        yield publish


@pytest.fixture
def store(tmp_path):
    return open_storage(str(tmp_path / "store"), SETTINGS)


def checkpoint(state, tmp_path):
    torch.save(state, tmp_path / "checkpoint.pth")
    return (tmp_path / "checkpoint.pth").read_bytes()


def published_network(builder):
    settings = ModelSettings(builder=builder, weights="DEFAULT")
    arguments = zoo.builder_arguments(settings, zoo.published_transforms(settings))
    if "aux_logits" in arguments:
        arguments |= {"aux_logits": True}
    torch.manual_seed(2)
    return zoo.build(builder, arguments, 1000)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("builder", ["squeezenet1_1", "googlenet", "mobilenet_v3_small"])
def test_published_weights_are_fetched_once_into_the_store(shelf, store, tmp_path, builder):
    given = published_network(builder).state_dict()
    name = shelf(builder, checkpoint(given, tmp_path))
    assert same(published_state(store, SETTINGS, builder, "IMAGENET1K_V1"), given)
    assert same(published_state(store, SETTINGS, builder, "DEFAULT"), given)
    assert shelf.asked == [f"/{name}"]
    assert [entry.path for entry in store.list()] == [f"cache/weights/{name.removesuffix('.pth')}.safetensors"]


def test_old_names_and_missing_counters_of_checkpoints_are_mended(shelf, store, tmp_path):
    given = published_network("densenet121").state_dict()
    old = {}
    for key, tensor in given.items():
        if "num_batches_tracked" in key:
            continue
        for layer in ("norm", "conv"):
            for n in "12":
                if "denselayer" in key:
                    key = key.replace(f".{layer}{n}.", f".{layer}.{n}.")
        old[key] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    shelf("densenet121", checkpoint(old, tmp_path))
    assert same(published_state(store, SETTINGS, "densenet121", "DEFAULT"), given)


def test_damaged_copies_in_the_cache_are_fetched_again(shelf, store, tmp_path):
    given = published_network("squeezenet1_1").state_dict()
    shelf("squeezenet1_1", checkpoint(given, tmp_path))
    path = fetch_published(store, SETTINGS, "squeezenet1_1", "DEFAULT")
    store.write(path, b"half")
    assert same(published_state(store, SETTINGS, "squeezenet1_1", "DEFAULT"), given)
    assert same(load(store.read(path)), given)
    assert len(shelf.asked) == 2


def refused(shelf, store, data, digest=None):
    shelf("squeezenet1_1", data, digest)
    with pytest.raises(ModelError) as raised:
        published_state(store, SETTINGS, "squeezenet1_1", "DEFAULT")
    assert list(store.list()) == []
    return str(raised.value)


def test_a_file_that_is_not_the_published_one_is_refused(shelf, store, tmp_path):
    data = checkpoint(published_network("squeezenet1_1").state_dict(), tmp_path)
    assert "does not begin with 00000000" in refused(shelf, store, data, "0" * 8)


class Code:
    """What a checkpoint that carries code unpickles to."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_never_runs(shelf, store, tmp_path):
    for data in (
        pickle.dumps(Code(str(tmp_path / "ran")), 2),
        checkpoint({"a": Code(str(tmp_path / "ran"))}, tmp_path),
    ):
        assert "is not a readable checkpoint" in refused(shelf, store, data)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_are_said(shelf, store, tmp_path):
    data = checkpoint(published_network("mobilenet_v3_small").state_dict(), tmp_path)
    assert "does not fit this torchvision's squeezenet1_1" in refused(shelf, store, data)


def test_an_address_that_nobody_answers_says_what_to_do(shelf, store, tmp_path, monkeypatch):
    shelf("squeezenet1_1", b"")
    weights = models.get_model_weights("squeezenet1_1").DEFAULT
    for url in (weights.url.replace("squeeze", "no"), "http://127.0.0.1:1/w-00000000.pth"):
        monkeypatch.setattr(weights.value, "url", url)
        with pytest.raises(ModelError, match=r"cannot be fetched .*give the weights as a \.safetensors file"):
            published_state(store, SETTINGS, "squeezenet1_1", "DEFAULT")
