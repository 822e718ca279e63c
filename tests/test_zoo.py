import pytest
import torch
from families import ALL, FAMILIES

from pipeline import zoo
from pipeline.errors import ModelError
from pipeline.heads import classifier_name, replace_head
from pipeline.settings import ModelSettings, TransformSettings
from pipeline.transforms import Transforms

# Builder, parameters, what enters the head; of torchvision's weight metadata.
PUBLISHED = [
    ("alexnet", 61_100_840, 4096), ("vgg11", 132_863_336, 4096), ("vgg16", 138_357_544, 4096), ("vgg19", 143_667_240, 4096),
    ("vgg16_bn", 138_365_992, 4096),
    ("resnet18", 11_689_512, 512), ("resnet34", 21_797_672, 512), ("resnet50", 25_557_032, 2048),
    ("squeezenet1_0", 1_248_424, 512), ("squeezenet1_1", 1_235_496, 512),
    ("densenet121", 7_978_856, 1024), ("densenet161", 28_681_000, 2208),
    ("inception_v3", 27_161_264, 2048), ("googlenet", 6_624_904, 1024),
    ("mobilenet_v2", 3_504_872, 1280), ("mobilenet_v3_small", 2_542_856, 1024), ("mobilenet_v3_large", 5_483_032, 1280),
]  # fmt: skip


def planned(builder, **model):
    """Return arguments and preprocessing as a config with these settings gives them."""
    settings = ModelSettings(builder=builder, **model)
    transforms = zoo.published_transforms(settings)
    return zoo.builder_arguments(settings, transforms), transforms


def num_parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("builder", "parameters", "features"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_parameters_and_features_are_the_published_ones(builder, parameters, features):
    arguments, _ = planned(builder, weights="DEFAULT")
    net = zoo.skeleton(builder, arguments, 1000)
    assert num_parameters(net) == parameters
    assert net.get_submodule(classifier_name(net)).weight.shape[:2] == (1000, features)


@pytest.mark.parametrize("num_classes", [2, 5, 1000, 26_263])
@pytest.mark.parametrize("builder", [*ALL, "vgg16", "vgg19_bn", "resnet50", "densenet161"])
def test_any_number_of_classes_at_the_networks_own_size(builder, num_classes):
    arguments, transforms = planned(builder)
    net = zoo.skeleton(builder, arguments, num_classes).eval()
    images = torch.zeros(2, 3, transforms.crop_px, transforms.crop_px, device="meta")
    assert net(images).shape == (2, num_classes)
    assert net.get_submodule(classifier_name(net)).weight.shape[0] == num_classes
    with torch.device("meta"):
        replace_head(net, 3)
    assert net(images).shape == (2, 3)


def test_the_head_of_every_builder_of_torchvision_is_found():
    for builder in zoo.builders():
        if builder == "regnet_y_128gf":  # 2.6 GB, which cannot be built without memory
            continue
        arguments, _ = planned(builder)
        net = zoo.skeleton(builder, arguments, 11)
        assert net.get_submodule(classifier_name(net)).weight.shape[0] == 11, builder


@pytest.mark.parametrize("builder", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_the_width_multiplier_scales_parameters_with_its_square(builder):
    sizes = [num_parameters(zoo.skeleton(builder, {"width_mult": width}, 2)) for width in (1.0, 2.0, 4.0)]
    assert 3.3 < sizes[1] / sizes[0] < 4.1
    assert 3.6 < sizes[2] / sizes[1] < 4.1
    assert num_parameters(zoo.skeleton(builder, {}, 2)) == sizes[0]


@pytest.mark.parametrize(
    ("builder", "size_px", "resize_px"), [("mobilenet_v2", 160, 183), ("inception_v3", 150, 172), ("linear", 16, 16)]
)
def test_the_resolution_multiplier_scales_what_is_resized_to_as_well(builder, size_px, resize_px):
    transforms = zoo.published_transforms(ModelSettings(builder=builder), size_px)
    assert (transforms.resize_px, transforms.crop_px) == (resize_px, size_px)


def test_the_config_has_the_last_word_on_sizes():
    settings = ModelSettings(builder="mobilenet_v2", transforms=TransformSettings(resize_px=160))
    transforms = zoo.published_transforms(settings, 160)
    assert (transforms.resize_px, transforms.crop_px) == (160, 160)


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
    with pytest.raises(ModelError, match="resnet18 takes RGB; only linear, lab_cnn, resnet18_cifar take L"):
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


def test_published_weights_bring_their_own_preprocessing():
    for name, resize_px in (("IMAGENET1K_V1", 256), ("ResNet50_Weights.IMAGENET1K_V2", 232), ("DEFAULT", 232)):
        assert zoo.published_transforms(ModelSettings(builder="resnet50", weights=name)).resize_px == resize_px


@pytest.mark.parametrize(
    ("builder", "name", "words"),
    [
        ("resnet50", "IMAGENET22K", "has no weights 'IMAGENET22K' of resnet50; it has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("linear", "DEFAULT", "publishes no weights of linear"),
        ("resnet50", "weights.safetensor", r"ends in \.safetensors"),
    ],
)
def test_names_of_weights_that_are_not_published_are_said(builder, name, words):
    with pytest.raises(ModelError, match=words):
        zoo.published_weights(builder, name)


def test_vision_transformers_are_built_for_their_input():
    arguments, transforms = planned("vit_h_14")
    assert (arguments["image_size"], transforms.crop_px) == (518, 518)
    assert zoo.at_size("vit_h_14", arguments, 224)["image_size"] == 224
    assert zoo.at_size("resnet18", {"width_per_group": 64}, 224) == {"width_per_group": 64}


OWN_CODE = """
from torch import nn

LAYERS = 3

def tiny(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def no_network(num_classes):
    return num_classes
"""


@pytest.fixture
def own_code(own_module):
    return own_module(OWN_CODE)


def test_functions_of_ones_own_build_networks(own_code):
    net = zoo.build(f"{own_code}:tiny", {"width": 6}, 5)
    assert net(torch.zeros(2, 3, 9, 9)).shape == (2, 5)
    assert zoo.published_transforms(ModelSettings(builder=f"{own_code}:tiny"), 112) == Transforms(128, 112)
    assert zoo.skeleton(f"{own_code}:tiny", {}, 5)[3].weight.is_meta


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{own}:huge", "has no function 'huge'"),
        ("{own}:LAYERS", "has no function 'LAYERS'"),
        ("no.such.package:net", "no.such.package of 'no.such.package:net' cannot be imported.*on every node"),
        (":net", "cannot be imported"),
        ("{own}:", "has no function ''"),
        ("{own}:no_network", r"must return a torch.nn.Module, and returned a int"),
    ],
)
def test_what_is_no_function_that_builds_a_network_is_said(own_code, name, words):
    with pytest.raises(ModelError, match=words):
        zoo.build(name.format(own=own_code), {}, 2)


def test_arguments_that_ones_own_function_does_not_take_are_named(own_code):
    with pytest.raises(ModelError, match=r"tiny does not take {'depth': 2}.*it names num_classes, width"):
        zoo.build(f"{own_code}:tiny", {"depth": 2}, 2)


def test_the_code_of_ones_own_has_a_digest_and_the_known_networks_have_none(own_code, tmp_path):
    digest = zoo.code_sha256(f"{own_code}:tiny")
    assert len(digest) == 64
    (tmp_path / f"{own_code}.py").write_text(OWN_CODE + "# changed\n")
    assert zoo.code_sha256(f"{own_code}:tiny") != digest
    assert [zoo.code_sha256(builder) for builder in ("linear", "resnet18")] == [None, None]
