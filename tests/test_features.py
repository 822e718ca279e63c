import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline import layout, zoo
from pipeline.engine import normalize
from pipeline.errors import ModelError
from pipeline.examples import EXAMPLES_VERSION
from pipeline.features import Extractor
from pipeline.heads import head_of, split_head
from pipeline.images import decode
from pipeline.pretrained import load_pretrained
from pipeline.settings import InputSettings, ModelSettings
from pipeline.shards import Shard
from pipeline.sources import list_source, open_source, segments_of
from pipeline.storage import open_storage
from pipeline.tables import read_table
from pipeline.tasks import ExamplesTask
from pipeline.trainsettings import TrainSettings

GREY = {"resize_px": 6, "crop_px": 5, "color": "L", "mean": (0.5,), "std": (0.5,)}


@pytest.fixture
def lab(tmp_path):
    """Weights of a small CNN of 4 classes, and its section."""
    torch.manual_seed(0)
    net = zoo.build("lab_cnn", {"size_px": 5, "in_channels": 1}, 4)
    save_file(net.state_dict(), tmp_path / "lab.safetensors")
    return ModelSettings(builder="lab_cnn", weights=str(tmp_path / "lab.safetensors"), transforms=GREY)


@pytest.fixture
def pictures(tmp_path, class_folders):
    """Folder of 12 readable pictures, an empty file and half a picture."""
    root = class_folders(tmp_path / "images", {"train": 3, "test": 1})
    (root / "train/cat/empty.png").touch()
    (root / "train/dog/half.png").write_bytes((root / "train/dog/000.png").read_bytes()[:60])
    return root


def pretrained(model, storage):
    given = load_pretrained(open_storage("/nowhere", storage), model, storage)
    return given.net, given.transforms


def one_shard(root, storage):
    source = InputSettings(url=str(root))
    folder, _ = open_source(source, storage)
    return Shard(tuple(s for f in list_source(source, storage).files for s in segments_of(f, "images", source, folder)))


def extract(tmp_path, root, storage, model, backbone, batch_size=5):
    """Return the shard's table, and how many rows the extractor says that it has."""
    shard = one_shard(root, storage)
    train = TrainSettings(mode="head" if backbone else "none")
    task = ExamplesTask(
        str(tmp_path / "store"), storage, InputSettings(url=str(root)), "d", model, train, "x", backbone, batch_size
    )
    count = Extractor(task)(shard)
    return read_table(open_storage(task.store, storage), layout.features("d", "x", shard.id)), count


def test_readable_images_become_rows_and_the_others_none(tmp_path, pictures, storage_settings):
    table, count = extract(tmp_path, pictures, storage_settings, ModelSettings(), False)
    assert one_shard(pictures, storage_settings).num_images == 14
    assert (count, table.num_rows) == (12, 12)
    assert "features" not in table.column_names
    assert table.schema.metadata[b"nightshift.schema"] == f"examples/{EXAMPLES_VERSION}".encode()
    rows = {row["uri"]: row for row in table.to_pylist()}
    row = rows["test/mug/000.png"]
    assert (row["label"], row["split"], row["group"], row["position"]) == ("mug", "test", None, 0)
    assert row["content_hash"] == hashlib.sha256((pictures / "test/mug/000.png").read_bytes()).hexdigest()
    assert not any("empty" in uri or "half" in uri for uri in rows)


def test_features_are_what_the_frozen_backbone_gives(tmp_path, pictures, storage_settings, lab):
    table, count = extract(tmp_path, pictures, storage_settings, lab, True)
    assert count == 12
    net, transforms = pretrained(lab, storage_settings)
    assert split_head(net) == 32
    for row in table.to_pylist():
        image = decode((pictures / row["uri"]).read_bytes(), "L", 10**6).image
        pixels = torch.from_numpy(transforms.pixels(image)[None].copy())
        with torch.inference_mode():
            expected = net(normalize(pixels, transforms))[0].numpy()
        np.testing.assert_allclose(row["features"], expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_features_do_not_depend_on_the_batch_size(tmp_path, pictures, storage_settings, lab, batch_size):
    tables = [
        extract(tmp_path / str(size), pictures, storage_settings, lab, True, size)[0].to_pydict()
        for size in (5, batch_size)
    ]
    features = [np.array(table.pop("features")) for table in tables]
    assert tables[0] == tables[1]
    np.testing.assert_allclose(features[0], features[1], atol=1e-6)


@pytest.mark.parametrize("backbone", [False, True])
def test_a_shard_without_a_readable_image_has_an_empty_table_of_the_same_schema(
    tmp_path, storage_settings, lab, backbone, class_folders
):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/x.png").write_bytes(b"<html>")
    table, count = extract(tmp_path / "1", tmp_path / "bad", storage_settings, lab, backbone)
    assert (count, table.num_rows) == (0, 0)
    good = class_folders(tmp_path / "good", {"train": 1})
    assert table.schema == extract(tmp_path / "2", good, storage_settings, lab, backbone)[0].schema


def test_pretrained_keeps_all_classes_of_the_weights(storage_settings, lab):
    net, transforms = pretrained(lab, storage_settings)
    assert head_of(net).out_features == 4
    assert transforms.to_json() == {**GREY, "mean": [0.5], "std": [0.5], "interpolation": "bilinear"}


def test_weights_of_another_network_are_refused_before_anything_is_read(tmp_path, pictures, storage_settings, lab):
    other = lab.model_copy(update={"builder": "linear"})
    with pytest.raises(ModelError, match="does not fit Linear"):
        extract(tmp_path, pictures, storage_settings, other, True)


def test_a_head_that_is_not_the_networks_output_is_refused_before_an_image_is_read(
    tmp_path, pictures, storage_settings, own_module
):
    name = own_module(
        "from torch import nn\n\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes), nn.Softmax(1))\n"
    )
    model = ModelSettings(builder=f"{name}:net", weights="w.safetensors", transforms={"resize_px": 8, "crop_px": 8})
    with pytest.raises(ModelError, match="something else than its last linear layer gives"):
        extract(tmp_path, pictures, storage_settings, model, True)
