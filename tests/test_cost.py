import pytest

from pipeline import zoo
from pipeline.cost import cost
from pipeline.settings import ModelSettings
from pipeline.transforms import Transforms


def costs(builder, size_px=None, num_classes=1000, **arguments):
    settings = ModelSettings(builder=builder, arguments=arguments)
    transforms = zoo.published_transforms(settings, size_px)
    return cost(builder, zoo.builder_arguments(settings, transforms), transforms, num_classes)


def test_the_small_networks_by_hand():
    linear = costs("linear", 8, 5)
    assert (linear.parameters, linear.multiply_adds) == (5 * (3 * 8 * 8) + 5, 5 * 3 * 8 * 8)
    lab = costs("lab_cnn", 8, 5)
    convolutions = 8 * 8 * 16 * 3 * 25 + 4 * 4 * 32 * 16 * 25
    assert lab.multiply_adds == convolutions + 5 * 32 * 2 * 2
    assert linear.gradient_bytes == 4 * linear.parameters


def test_mobilenet_at_half_the_width_and_half_the_resolution():
    """1704.04861: the width multiplier scales parameters and cost with its square, the resolution multiplier the cost alone."""
    whole, narrow, small = (
        costs("mobilenet_v2"),
        costs("mobilenet_v2", width_mult=0.5),
        costs("mobilenet_v2", 112),
    )
    assert round(whole.multiply_adds / 1e9, 3) == 0.301
    assert 2.8 < whole.multiply_adds / narrow.multiply_adds < 4
    assert small.parameters == whole.parameters
    assert 3.6 < whole.multiply_adds / small.multiply_adds < 4


def test_code_of_ones_own_is_counted_too(own_module):
    name = own_module(
        "from torch import nn\n\ndef net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
    )
    counted = cost(f"{name}:net", {}, Transforms(2, 2), 7)
    assert (counted.parameters, counted.multiply_adds) == (12 * 7 + 7, 12 * 7)


@pytest.mark.parametrize("num_classes", [2, 26_263])
def test_the_classes_cost_what_the_last_layer_costs(num_classes):
    few, many = costs("mobilenet_v2", num_classes=1), costs("mobilenet_v2", num_classes=num_classes)
    assert many.parameters - few.parameters == (num_classes - 1) * 1281
    assert many.multiply_adds - few.multiply_adds == (num_classes - 1) * 1280
