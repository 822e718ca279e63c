import math

import pytest
import torch
from torch import nn

from pipeline import sanity
from pipeline.sanity import by_heart_warning, first_loss_warning
from pipeline.trainsettings import TrainSettings

K = 5
SETTINGS = TrainSettings(learning_rate=1e-2)


@pytest.mark.parametrize(("factor", "fine"), [(1.0, True), (0.91, True), (1.09, True), (0.89, False), (1.11, False)])
def test_the_first_loss_is_that_of_guessing_within_a_tenth(factor, fine):
    warning = first_loss_warning(factor * math.log(K), 64, K)
    assert (warning is None) is fine
    if warning:
        assert warning.startswith("first-loss: ")
        assert "guessing among 5 classes is 1.61" in warning


def test_the_loss_of_a_few_images_is_not_judged():
    assert first_loss_warning(9.0, 31, K) is None


def images():
    torch.manual_seed(1)
    return torch.randn(20, 64), torch.arange(20) % K


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, K))


def test_a_network_that_can_learn_images_by_heart_is_left_alone():
    module = network()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    assert by_heart_warning(module, SETTINGS, *images()) is None
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_images_with_contrary_labels_cannot_be_learnt():
    _, targets = images()
    warning = by_heart_warning(network(), SETTINGS, torch.ones(20, 64), targets)
    assert warning.startswith("by-heart: 20 images cannot be learnt by heart: after 100 steps 4 are right")
    assert "train.learning_rate (0.01)" in warning


@pytest.mark.parametrize("learning_rate", [1e-9, 1e6])
def test_a_learning_rate_that_is_far_off_is_warned_of(learning_rate):
    settings = TrainSettings(learning_rate=learning_rate, optimizer="sgd")
    assert "by-heart" in by_heart_warning(network(), settings, *images())


def test_a_slow_network_is_not_tried_for_long(monkeypatch):
    monkeypatch.setattr(sanity, "LIMIT_S", -1.0)
    _, targets = images()
    assert by_heart_warning(network(), SETTINGS, torch.ones(20, 64), targets) is None
