import pytest
import torch
from torch import nn

from pipeline.averages import Average


def module(value=0.0):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)
    return net


def fill(net, value):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(value)


def test_the_average_follows_the_weights_with_its_decay():
    net = module()
    average, expected = Average(net, 0.75), 0.0
    for steps, value in enumerate((1.0, 5.0, -2.0, 3.0), 1):
        fill(net, value)
        average.update(steps)
        decay = min(0.75, (1 + steps) / (10 + steps))
        expected = decay * expected + (1 - decay) * value
        assert average.tensors["0.weight"][0, 0].item() == pytest.approx(expected)
    average.update(10**6)
    assert average.tensors["0.weight"][0, 0].item() == pytest.approx(0.75 * expected + 0.25 * 3.0)


def test_the_module_answers_with_it_for_a_while_and_trains_on_with_its_own():
    net = module(1.0)
    average = Average(net, 0.5)
    fill(net, 3.0)
    with average.in_place():
        assert net[0].weight[0, 0] == 1.0
    assert net[0].weight[0, 0] == 3.0
    average.put()
    assert net[0].weight[0, 0] == 1.0


def test_what_is_frozen_is_not_averaged_and_statistics_are_the_modules():
    net = module(1.0)
    net[0].weight.requires_grad = False
    average = Average(net, 0.5)
    assert sorted(average.tensors) == ["0.bias", "1.bias", "1.weight"]
    net[1].running_mean.fill_(7.0)
    with average.in_place():
        assert net[1].running_mean[0] == 7.0


def test_an_average_goes_on_from_a_checkpoint():
    first, second = Average(module(1.0), 0.5), Average(module(2.0), 0.5)
    second.load(first.tensors)
    assert torch.equal(second.tensors["0.weight"], first.tensors["0.weight"])
    assert second.tensors["0.weight"] is not first.tensors["0.weight"]
