import copy

import pytest
import torch
from torch import nn

from pipeline import zoo
from pipeline.errors import ModelError
from pipeline.settings import ModelSettings, TransformSettings
from pipeline.transforms import Transforms

K = 7
# builder -> input size, features, arguments that keep it small
FAMILIES = {
    "linear": (8, 192, {}),
    "lab_cnn": (8, 128, {}),
    "alexnet": (63, 4096, {}),
    "vgg11": (32, 4096, {}),
    "resnet18": (32, 512, {}),
    "densenet121": (32, 1024, {}),
    "mobilenet_v2": (32, 320 * 4, {"width_mult": 0.25}),
    "mobilenet_v3_small": (32, 1024, {}),
    "googlenet": (32, 1024, {}),
    "inception_v3": (75, 2048, {}),
    "efficientnet_b0": (32, 1280, {}),
    "vit_b_16": (16, 768, {"image_size": 16}),
}


def build(builder, num_classes=K):
    size_px, _, arguments = FAMILIES.get(builder, (64, 0, {}))
    settings = ModelSettings(builder=builder, arguments=arguments)
    transforms = Transforms(size_px, size_px)
    torch.manual_seed(0)
    return zoo.build(builder, zoo.builder_arguments(settings, transforms), num_classes).eval()


def images(builder):
    size_px = FAMILIES.get(builder, (64,))[0]
    return torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("replaced", [False, True], ids=["own head", "new head"])
@pytest.mark.parametrize("builder", [*FAMILIES, "squeezenet1_1"])
def test_features_are_appended_to_the_logits(builder, replaced):
    net = build(builder)
    if replaced:
        zoo.replace_head(net, K)
    else:
        zoo.head_of(net).reset_parameters() if builder in FAMILIES else None
    backbone = copy.deepcopy(net)
    with torch.inference_mode():
        logits = net(images(builder))
        size = zoo.split_head(backbone)
        features = torch.flatten(backbone(images(builder)), 1)
        zoo.append_features(net)
        torch.testing.assert_close(net(images(builder)), torch.cat([logits, features], 1))
    assert features.shape == (2, size)


@pytest.mark.parametrize("builder", FAMILIES)
def test_head_of_features_is_the_whole_network(builder):
    net, size = build(builder), FAMILIES[builder][1]
    zoo.head_of(net).reset_parameters()  # that of vit starts with zeros
    backbone = copy.deepcopy(net)
    with torch.inference_mode():
        logits = net(images(builder))
        assert zoo.split_head(backbone) == size
        features = backbone(images(builder))
        assert features.shape == (2, size)
        assert logits.shape == (2, K)
        assert logits.std() > 0
        torch.testing.assert_close(zoo.head_of(net)(features), logits)
        fresh = zoo.replace_head(net, 3)
        assert zoo.head_of(net) is fresh
        torch.testing.assert_close(fresh(features), net(images(builder)))


def test_squeezenets_convolution_head_becomes_a_linear_one_on_pooled_maps():
    net = build("squeezenet1_1")
    with pytest.raises(ModelError, match="no linear classifier"):
        zoo.head_of(net)
    backbone = copy.deepcopy(net)
    with torch.inference_mode():
        assert zoo.split_head(backbone) == 512
        features, head = backbone(images("squeezenet1_1")), zoo.replace_head(net, 3)
        assert zoo.head_of(net) is head
        assert features.shape == (2, 512)
        torch.testing.assert_close(head(features), net(images("squeezenet1_1")))


def test_a_network_without_a_linear_classifier_says_so():
    for change in (zoo.split_head, zoo.head_of, lambda net: zoo.replace_head(net, 2)):
        with pytest.raises(ModelError, match="Sequential has no linear classifier"):
            change(nn.Sequential(nn.Conv2d(3, 2, 1)))


@pytest.mark.parametrize(
    ("builder", "parameters"),
    [
        ("alexnet", 61_100_840), ("vgg11", 132_863_336), ("resnet18", 11_689_512), ("resnet50", 25_557_032),
        ("squeezenet1_0", 1_248_424), ("squeezenet1_1", 1_235_496), ("densenet121", 7_978_856),
        ("inception_v3", 27_161_264), ("mobilenet_v2", 3_504_872), ("mobilenet_v3_small", 2_542_856),
        ("mobilenet_v3_large", 5_483_032),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(builder, parameters):
    with torch.device("meta"):
        net = zoo.build(builder, zoo.builder_arguments(ModelSettings(builder=builder), Transforms()), 1000)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_the_small_cnn_has_the_shapes_of_the_lab():
    net = zoo.build("lab_cnn", {"size_px": 28, "in_channels": 1}, 10)
    shapes = [tuple(p.shape) for p in net.parameters() if p.ndim > 1]
    assert shapes == [(16, 1, 5, 5), (32, 16, 5, 5), (10, 32 * 7 * 7)]
    assert net(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


@pytest.mark.parametrize(
    ("builder", "words"),
    [
        ("mobilenet_v22", "did you mean mobilenet_v2"),
        ("resnet-18", "did you mean .*resnet18"),
        ("linaer", "did you mean linear"),
        ("qqqq", "for example linear"),
    ],
)
def test_a_wrong_builder_gets_the_nearest_names(builder, words):
    with pytest.raises(ModelError, match=f"no network is called '{builder}'.*{words}"):
        zoo.check_builder(builder)


@pytest.mark.parametrize("builder", ["fasterrcnn_resnet50_fpn", "fcn_resnet50", "quantized_resnet18", "list_models"])
def test_what_is_no_classification_builder_is_refused(builder):
    with pytest.raises(ModelError, match="no network is called"):
        zoo.build(builder, {}, 2)


@pytest.mark.parametrize(
    ("builder", "arguments", "words"),
    [
        ("mobilenet_v2", {"width": 2}, "mobilenet_v2 does not take {'width': 2}"),
        ("linear", {"size": 2}, "names num_classes, size_px, in_channels"),
        ("mobilenet_v2", {"dropout": -1}, "does not take {'dropout': -1}"),
        ("resnet18", {"num_classes": 5}, "does not take"),
    ],
)
def test_arguments_that_the_builder_does_not_take_are_named(builder, arguments, words):
    with pytest.raises(ModelError, match=words):
        zoo.build(builder, arguments, 2)


def test_weights_never_come_through_the_arguments():
    """torchvision would download them: a pickle, from wherever a bundle says."""
    with pytest.raises(ModelError, match=r"model\.weights"):
        zoo.build("resnet18", {"weights": "DEFAULT"}, 1000)


@pytest.mark.parametrize("builder", ["inception_v3", "googlenet"])
@pytest.mark.parametrize("weights", [None, "w.safetensors"])
def test_transform_input_is_part_of_the_arguments(builder, weights):
    settings = ModelSettings(builder=builder, weights=weights)
    arguments = zoo.builder_arguments(settings, Transforms())
    assert arguments["transform_input"] is (weights is not None)
    with torch.device("meta"):
        assert zoo.build(builder, arguments, 2).transform_input is (weights is not None)


def test_arguments_of_the_config_win():
    settings = ModelSettings(builder="inception_v3", weights="w", arguments={"transform_input": False})
    assert zoo.builder_arguments(settings, Transforms())["transform_input"] is False


def test_own_networks_learn_their_input_from_the_transforms():
    arguments = zoo.builder_arguments(ModelSettings(builder="linear"), Transforms(9, 8, "L", (0.5,), (0.5,)))
    assert arguments == {"size_px": 8, "in_channels": 1}
    assert zoo.build("linear", arguments, 3).fc.weight.shape == (3, 64)


def test_grey_pictures_are_for_our_own_networks_only():
    with pytest.raises(ModelError, match="resnet18 takes RGB; only linear and lab_cnn take L"):
        zoo.builder_arguments(ModelSettings(builder="resnet18"), Transforms(8, 8, "L", (0.5,), (0.5,)))


@pytest.mark.parametrize(
    ("builder", "expected"),
    [
        ("linear", Transforms(32, 32, mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("lab_cnn", Transforms(28, 28, mean=(0.5,) * 3, std=(0.5,) * 3)),
        ("mobilenet_v2", Transforms(256, 224)),
        ("inception_v3", Transforms(342, 299)),
        ("efficientnet_b0", Transforms(256, 224, interpolation="bicubic")),
    ],
)
def test_preprocessing_is_that_of_the_published_weights(builder, expected):
    assert zoo.published_transforms(ModelSettings(builder=builder)) == expected


def test_the_config_sets_what_newer_weights_want():
    settings = ModelSettings(builder="resnet50", transforms=TransformSettings(resize_px=232))
    assert zoo.published_transforms(settings) == Transforms(232, 224)


@pytest.mark.parametrize("builder", ["squeezenet1_1", "inception_v3", "mobilenet_v2", "vit_b_16", "linear"])
def test_the_classes_of_weights_are_counted_on_their_head(builder):
    size_px, _, arguments = FAMILIES.get(builder, (64, 0, {}))
    arguments = zoo.builder_arguments(ModelSettings(builder=builder, arguments=arguments), Transforms(size_px, size_px))
    with torch.device("meta"):
        weights = zoo.build(builder, arguments, 13).state_dict()
    assert zoo.count_outputs(builder, arguments, weights) == 13


def test_weights_without_the_head_count_as_imagenet():
    assert zoo.count_outputs("linear", {"size_px": 2, "in_channels": 1}, {}) == 1000
