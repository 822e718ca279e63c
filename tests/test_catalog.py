import json
import math

import pytest

from pipeline import zoo
from pipeline.catalog import configured, published
from pipeline.cost import cost
from pipeline.settings import ModelSettings, StorageSettings
from pipeline.storage import open_storage

ENTRIES = list(published())
# Too large to be built in passing (regnets are built for real), or with other arguments than their first weights want.
LARGE = {"regnet_y_128gf", "regnet_x_32gf", "regnet_y_32gf"}
FIRST = {entry.builder: entry for entry in reversed(ENTRIES)}


def test_every_builder_is_listed_ours_first():
    assert [entry.builder for entry in ENTRIES[:3]] == ["linear", "lab_cnn", "resnet18_cifar"]
    assert list(dict.fromkeys(entry.builder for entry in ENTRIES)) == zoo.builders()
    assert json.loads(json.dumps([entry.to_json() for entry in ENTRIES], allow_nan=False))


def test_the_accuracies_are_the_published_ones():
    found = {(entry.builder, entry.weights): entry.top1 for entry in ENTRIES}
    expected = {
        ("alexnet", "IMAGENET1K_V1"): 56.522, ("vgg11", "IMAGENET1K_V1"): 69.020, ("vgg16", "IMAGENET1K_V1"): 71.592,
        ("resnet18", "IMAGENET1K_V1"): 69.758, ("resnet50", "IMAGENET1K_V2"): 80.858,
        ("squeezenet1_1", "IMAGENET1K_V1"): 58.178, ("densenet161", "IMAGENET1K_V1"): 77.138,
        ("inception_v3", "IMAGENET1K_V1"): 77.294, ("googlenet", "IMAGENET1K_V1"): 69.778,
        ("mobilenet_v2", "IMAGENET1K_V1"): 71.878, ("mobilenet_v3_large", "IMAGENET1K_V2"): 75.274,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert not any(math.isnan(entry.top1) for entry in ENTRIES if entry.top1 is not None)


@pytest.mark.parametrize("builder", [name for name in FIRST if name not in LARGE])
def test_what_is_counted_is_what_is_published(builder):
    entry = FIRST[builder]
    settings = ModelSettings(builder=builder, weights=entry.weights)
    transforms = zoo.published_transforms(settings)
    counted = cost(builder, zoo.builder_arguments(settings, transforms), transforms, 1000)
    assert transforms.crop_px == entry.input_px
    assert counted.parameters == entry.parameters
    assert counted.multiply_adds / 1e9 == pytest.approx(entry.multiply_adds / 1e9, abs=6e-4)
    assert counted.gradient_bytes == entry.gradient_bytes


def test_the_network_of_a_config_has_its_arguments_and_its_size(tmp_path):
    store = open_storage(str(tmp_path), StorageSettings())
    entry = configured(store, ModelSettings(builder="mobilenet_v2", arguments={"width_mult": 0.5}), 160)
    assert (entry.builder, entry.input_px, entry.top1) == ("mobilenet_v2", 160, None)
    assert entry.parameters < 0.6 * FIRST["mobilenet_v2"].parameters
    assert entry.multiply_adds < 0.2 * FIRST["mobilenet_v2"].multiply_adds
