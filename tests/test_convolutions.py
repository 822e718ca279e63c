from itertools import product

import pytest
import torch
from torch import nn

from pipeline.convolutions import output_px


def size_or_none(layer, input_px):
    """Return what torch gives, None when it refuses."""
    try:
        return layer(torch.zeros(1, 1, input_px, input_px, device="meta")).shape[-1]
    except RuntimeError:
        return None


def foretold(*window):
    size = output_px(*window)
    return size if size >= 1 else None


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_convolutions_are_foretold_as_torch_computes_them(padding, dilation):
    for input_px, kernel, stride in product(range(1, 25), (1, 2, 3, 5, 7), (1, 2, 3, 4)):
        layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation, device="meta")
        assert foretold(input_px, kernel, stride, padding, dilation) == size_or_none(layer, input_px)


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_maximum_poolings_are_foretold_as_torch_computes_them(dilation, ceil_mode):
    for input_px, kernel, stride in product(range(1, 25), (1, 2, 3, 5), (1, 2, 3, 4)):
        for padding in range(kernel // 2 + 1):  # torch allows no more
            layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
            window = input_px, kernel, stride, padding, dilation, ceil_mode
            assert foretold(*window) == size_or_none(layer, input_px), window


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_average_poolings_are_foretold_as_torch_computes_them(ceil_mode):
    for input_px, kernel, stride in product(range(1, 25), (1, 2, 3, 5), (1, 2, 3, 4)):
        for padding in range(kernel // 2 + 1):
            layer = nn.AvgPool2d(kernel, stride, padding, ceil_mode)
            window = input_px, kernel, stride, padding, 1, ceil_mode
            assert foretold(*window) == size_or_none(layer, input_px), window


def test_the_convolution_of_the_textbook():
    """A picture of 5 x 5, a kernel of 3 x 3, and the 3 x 3 that every course computes by hand."""
    rows, kernel = ("11100", "01110", "00111", "00110", "01100"), ("101", "010", "101")
    picture, window = (torch.tensor([[float(c) for c in row] for row in grid])[None, None] for grid in (rows, kernel))
    answer = nn.functional.conv2d(picture, window)[0, 0]
    assert answer.tolist() == [[4, 3, 4], [2, 4, 3], [2, 3, 4]]
    assert answer.shape == (output_px(5, 3),) * 2


ALEXNET = [(11, 4, 2), (3, 2), (5, 1, 2), (3, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 2)]
# The stem, then what makes Mixed_6a and Mixed_7a smaller.
INCEPTION = [(3, 2), (3,), (3, 1, 1), (3, 2), (1,), (3,), (3, 2), (3, 2), (3, 2)]


@pytest.mark.parametrize(("layers", "smallest"), [(ALEXNET, 63), (INCEPTION, 75)], ids=["alexnet", "inception_v3"])
def test_the_smallest_inputs_of_two_networks_follow_from_it(layers, smallest):
    def reaches(size_px):
        for window in layers:
            size_px = output_px(size_px, *window)
        return size_px >= 1

    assert [reaches(size_px) for size_px in (smallest - 1, smallest)] == [False, True]
