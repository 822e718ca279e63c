import json

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from pipeline.adoption import adopt
from pipeline.bundle import load_bundle, seal
from pipeline.errors import ModelError
from pipeline.labelling import Predictor, answer
from pipeline.settings import ModelSettings, TransformSettings
from pipeline.storage import open_storage
from pipeline.zoo import build


@pytest.fixture
def store(tmp_path, storage_settings):
    return open_storage(str(tmp_path / "store"), storage_settings)


@pytest.fixture
def settings(tmp_path):
    """Weights of a linear classifier of three classes on disk, and the section that adopts them."""
    torch.manual_seed(0)
    net = build("linear", {"size_px": 4, "in_channels": 1}, 3)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "classes.json").write_text(json.dumps(["cat", "dog", "mug"]))
    return ModelSettings(
        name="stock",
        builder="linear",
        weights=str(tmp_path / "w.safetensors"),
        classes=str(tmp_path / "classes.json"),
        transforms=TransformSettings(resize_px=5, crop_px=4, color="L"),
    )


def changed(settings, **values):
    return settings.model_copy(update=values)


def test_weights_and_classes_become_a_bundle(store, settings, storage_settings, tmp_path):
    version = adopt(store, settings, storage_settings)
    bundle = load_bundle(store, "stock", version)
    assert bundle.architecture.classes.names == ("cat", "dog", "mug")
    assert bundle.architecture.transforms.crop_px == 4
    assert bundle.temperature == 1.0
    given = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(given[key], tensor) for key, tensor in bundle.net.state_dict().items())


def test_a_bundle_is_adopted_again_with_its_own_classes(store, settings, storage_settings):
    version = adopt(store, settings, storage_settings)
    again = changed(settings, weights=f"stock@{version}", classes=None)
    assert adopt(store, again, storage_settings) == version
    other = changed(again, name="other", transforms=TransformSettings(resize_px=6))
    bundle = load_bundle(store, "other", adopt(store, other, storage_settings))
    assert bundle.architecture.classes.names == ("cat", "dog", "mug")
    assert (bundle.architecture.transforms.resize_px, bundle.architecture.transforms.color) == (6, "L")


def test_a_multi_label_model_is_adopted_with_a_threshold(store, settings, storage_settings):
    version = adopt(store, changed(settings, threshold=0.3), storage_settings)
    assert load_bundle(store, "stock", version).thresholds == (0.3, 0.3, 0.3)
    assert version != adopt(store, settings, storage_settings)


def test_a_bundle_keeps_what_was_sealed_with_its_weights(store, settings, storage_settings):
    first = load_bundle(store, "stock", adopt(store, settings, storage_settings))
    sealed = seal(store, "stock", first.architecture, first.net.state_dict(), 1.5, (0.1, 0.2, 0.3))
    again = changed(settings, name="other", weights=f"stock@{sealed}", classes=None)
    bundle = load_bundle(store, "other", adopt(store, again, storage_settings))
    assert (bundle.temperature, bundle.thresholds) == (1.5, (0.1, 0.2, 0.3))


def test_published_weights_are_adopted_with_their_own_classes(store, storage_settings, shared_data):
    state = load_file(shared_data / "weights/squeezenet1_1_imagenet.safetensors")
    store.write("cache/weights/squeezenet1_1-b8a52dc0.safetensors", save(state))  # as if it had been fetched
    bundle = load_bundle(
        store, "model", adopt(store, ModelSettings(builder="squeezenet1_1", weights="DEFAULT"), storage_settings)
    )
    assert len(bundle.architecture.classes) == 1000
    assert bundle.architecture.classes.names[207] == "golden retriever"
    assert torch.equal(bundle.net.state_dict()["features.0.weight"], state["features.0.weight"])


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_input_that_the_network_cannot_take_is_refused(store, storage_settings, tmp_path):
    save_file(build("lab_cnn", {"size_px": 3, "in_channels": 3}, 2).state_dict(), tmp_path / "lab.safetensors")
    (tmp_path / "two.json").write_text('["a", "b"]')
    small = ModelSettings(
        builder="lab_cnn", weights=str(tmp_path / "lab.safetensors"), classes=str(tmp_path / "two.json")
    )
    with pytest.raises(ModelError, match=r"3 pixels does not fit lab_cnn.* is 4\. Set input\.size_px"):
        adopt(store, small, storage_settings, 3)
    assert list(store.list()) == []


def test_adopting_twice_is_one_version(store, settings, storage_settings):
    assert adopt(store, settings, storage_settings) == adopt(store, settings, storage_settings)


@pytest.mark.parametrize("key", ["weights", "classes"])
def test_both_weights_and_classes_are_needed(store, settings, storage_settings, key):
    with pytest.raises(ModelError, match=rf"needs model\.{key}[;,].*set it, or choose another"):
        adopt(store, changed(settings, **{key: None}), storage_settings)


@pytest.mark.parametrize("key", ["weights", "classes"])
def test_files_that_do_not_exist_are_named(store, settings, storage_settings, key):
    with pytest.raises(ModelError, match=rf"model\.{key}: /nowhere/x.safetensors does not exist"):
        adopt(store, changed(settings, **{key: "/nowhere/x.safetensors"}), storage_settings)


def test_a_wrong_number_of_classes_is_said_and_nothing_is_sealed(store, settings, storage_settings, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps(["cat", "dog"]))
    with pytest.raises(ModelError, match=r"fc.weight is \(3, 16\), expected \(2, 16\).*number of classes"):
        adopt(store, settings, storage_settings)
    assert list(store.list()) == []


def test_weights_of_another_network_are_said(store, settings, storage_settings):
    with pytest.raises(ModelError, match="does not fit LabCNN"):
        adopt(store, changed(settings, builder="lab_cnn"), storage_settings)


def test_classes_that_are_no_list_are_said(store, settings, storage_settings, tmp_path):
    (tmp_path / "classes.json").write_text('{"0": "cat"}')
    with pytest.raises(ModelError, match="expected a JSON list"):
        adopt(store, settings, storage_settings)


def test_the_stock_imagenet_model_is_adopted_with_its_own_classes(store, storage_settings, shared_data):
    weights = shared_data / "weights"
    settings = ModelSettings(
        builder="squeezenet1_1",
        weights=str(weights / "squeezenet1_1_imagenet.safetensors"),
        classes=str(weights / "imagenet_classes.json"),
    )
    bundle = load_bundle(store, "model", adopt(store, settings, storage_settings))
    assert len(bundle.architecture.classes) == 1000
    assert bundle.architecture.classes.names.count("crane") == 2
    assert (bundle.architecture.transforms.resize_px, bundle.architecture.transforms.crop_px) == (256, 224)


def test_26_263_classes_are_adopted_and_answered_by_their_best(store, tmp_path, storage_settings, png):
    """The number of places in "PlaNet": the last layer is most of the network, and a label is still a top 5."""
    net = build("linear", {"size_px": 4, "in_channels": 1}, 26_263)
    with torch.no_grad():
        net.fc.bias[[7, 26_262]] += 50.0
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "classes.json").write_text(json.dumps([f"place {n}" for n in range(26_263)]))
    places = ModelSettings(
        name="places", builder="linear", weights=str(tmp_path / "w.safetensors"), classes=str(tmp_path / "classes.json"),
        transforms=TransformSettings(resize_px=5, crop_px=4, color="L"),
    )  # fmt: skip
    bundle = load_bundle(store, "places", adopt(store, places, storage_settings))
    row = answer(Predictor(bundle, 5), "photo", png(3), 10**6)
    assert len(row["top_k"]) == 5
    assert {best["class_index"] for best in row["top_k"][:2]} == {7, 26_262}
    assert row["label"] == f"place {row['class_index']}"
