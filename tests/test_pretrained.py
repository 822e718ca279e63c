import pytest
import torch
from families import build
from safetensors.torch import save_file
from serving import served

from pipeline.bundle import seal
from pipeline.classes import Classes
from pipeline.errors import ModelError
from pipeline.heads import head_of
from pipeline.manifest import Architecture
from pipeline.pretrained import blueprint, load_pretrained
from pipeline.registry import promote_first
from pipeline.settings import ModelSettings, TransformSettings
from pipeline.storage import open_storage
from pipeline.transforms import Transforms

NAMES = ("cat", "dog", "mug")
SIZED = Transforms(48, 32, mean=(0.1,) * 3)


@pytest.fixture
def store(tmp_path, storage_settings):
    return open_storage(str(tmp_path / "store"), storage_settings)


def sealed(store, builder="mobilenet_v2", arguments=None, head="linear"):
    """Seal a network of three classes as `first` and return its version and state dict."""
    arguments = {"width_mult": 0.25} if arguments is None else arguments
    architecture = Architecture(builder, arguments, head, Classes(NAMES, NAMES), SIZED)
    torch.manual_seed(4)
    state = architecture.build().state_dict()
    return seal(store, "first", architecture, state), state


def same(net, state):
    own = net.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key]) for key in own)


def test_a_bundle_brings_its_arguments_preprocessing_head_and_classes(store, storage_settings):
    version, state = sealed(store)
    promote_first(store, "first", version, "now")
    for reference in (version, "production"):
        model = ModelSettings(builder="mobilenet_v2", weights=f"first@{reference}")
        given = load_pretrained(store, model, storage_settings)
        assert same(given.net, state)
        assert (given.arguments, given.transforms, given.head) == ({"width_mult": 0.25}, SIZED, "linear")
        assert given.bundle.architecture.classes.names == NAMES
        assert blueprint(store, model) == (given.arguments, given.transforms)


def test_the_config_may_feed_a_bundle_in_another_way(store, storage_settings):
    version, _ = sealed(store)
    settings = TransformSettings(mean=(0.5,))
    model = ModelSettings(builder="mobilenet_v2", weights=f"first@{version}", transforms=settings)
    transforms = load_pretrained(store, model, storage_settings, 64).transforms
    assert transforms == Transforms(96, 64, mean=(0.5,) * 3)


def test_another_builders_bundle_says_which_one_it_is(store, storage_settings):
    version, _ = sealed(store)
    model = ModelSettings(builder="resnet18", weights=f"first@{version}")
    with pytest.raises(ModelError, match=rf"bundle first@{version} is a mobilenet_v2.*set model.builder: mobilenet_v2"):
        load_pretrained(store, model, storage_settings)


def test_a_bundle_that_is_not_there_names_those_that_are(store, storage_settings):
    version, _ = sealed(store)
    for weights, words in (("first@00", f"it has: {version}"), ("second@production", "no model 'second' yet")):
        with pytest.raises(ModelError, match=words):
            load_pretrained(store, ModelSettings(builder="mobilenet_v2", weights=weights), storage_settings)


def test_a_bundle_whose_weights_were_changed_is_refused(store, storage_settings):
    version, _ = sealed(store)
    path = f"models/first/{version}/weights.safetensors"
    store.write(path, store.read(path)[:-1] + b"x")
    with pytest.raises(ModelError, match="not the sealed file"):
        load_pretrained(store, ModelSettings(builder="mobilenet_v2", weights=f"first@{version}"), storage_settings)


@pytest.mark.parametrize("builder", ["inception_v3", "googlenet"])
def test_auxiliary_classifiers_in_the_weights_are_taken_or_dropped(store, storage_settings, tmp_path, builder):
    state = build(builder, 7).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    names = ("AuxLogits.", "aux1.", "aux2.")
    for keep in (True, False):
        model = ModelSettings(builder=builder, weights=str(tmp_path / "w.safetensors"), arguments={"aux_logits": keep})
        given = load_pretrained(store, model, storage_settings)
        assert same(given.net, {key: state[key] for key in state if keep or not key.startswith(names)})
        assert given.arguments["transform_input"] is True
        assert head_of(given.net).out_features == 7


def test_auxiliary_classifiers_of_a_bundle_can_be_dropped_in_a_second_stage(store, storage_settings):
    arguments = {"transform_input": True, "aux_logits": True, "init_weights": False}
    version, state = sealed(store, "inception_v3", arguments)
    model = ModelSettings(builder="inception_v3", weights=f"first@{version}", arguments={"aux_logits": False})
    given = load_pretrained(store, model, storage_settings)
    assert same(given.net, {key: state[key] for key in state if not key.startswith("AuxLogits.")})
    assert given.arguments == arguments | {"aux_logits": False}
    architecture = Architecture(
        "inception_v3", given.arguments, given.head, given.bundle.architecture.classes, given.transforms
    )
    assert architecture.build().state_dict().keys() == given.net.state_dict().keys()


def test_weights_come_over_http(store, storage_settings, tmp_path):
    state = build("linear", 5).state_dict()
    save_file(state, tmp_path / "w.safetensors")
    with served(tmp_path) as (url, _):
        model = ModelSettings(builder="linear", weights=f"{url}/w.safetensors")
        assert same(load_pretrained(store, model, storage_settings, 8).net, state)
