"""The families of networks that tests run: small inputs, what enters the head, and arguments that keep them small."""

import torch

from pipeline import zoo
from pipeline.heads import has_linear_head, head_of
from pipeline.settings import ModelSettings
from pipeline.transforms import Transforms

# builder -> input size, features, arguments
FAMILIES = {
    "linear": (8, 192, {}),
    "lab_cnn": (8, 128, {}),
    "resnet18_cifar": (8, 512, {}),
    "alexnet": (63, 4096, {}),
    "vgg11": (32, 4096, {}),
    "vgg11_bn": (32, 4096, {}),
    "resnet18": (32, 512, {}),
    "densenet121": (32, 1024, {}),
    "mobilenet_v2": (32, 320 * 4, {"width_mult": 0.25}),
    "mobilenet_v3_small": (32, 1024, {}),
    "mobilenet_v3_large": (32, 1280, {}),
    "googlenet": (32, 1024, {}),
    "inception_v3": (75, 2048, {}),
    "efficientnet_b0": (32, 1280, {}),
    "vit_b_16": (16, 768, {}),
    "regnet_y_400mf": (32, 440, {}),
}
SQUEEZENETS = ("squeezenet1_0", "squeezenet1_1")
ALL = (*FAMILIES, *SQUEEZENETS)


def size_of(builder: str) -> int:
    return FAMILIES.get(builder, (64,))[0]


def build(builder: str, num_classes: int) -> torch.nn.Module:
    """Return a network in eval mode with weights that depend on nothing, and a head that is not all zeros."""
    size_px, _, arguments = FAMILIES.get(builder, (64, 0, {}))
    settings = ModelSettings(builder=builder, arguments=arguments)
    torch.manual_seed(0)
    net = zoo.build(builder, zoo.builder_arguments(settings, Transforms(size_px, size_px)), num_classes).eval()
    if has_linear_head(net):
        head_of(net).reset_parameters()  # that of vit starts with zeros
    return net


def images(builder: str, count: int = 2) -> torch.Tensor:
    size_px = size_of(builder)
    return torch.randn(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
