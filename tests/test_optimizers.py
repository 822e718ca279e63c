import pytest
import torch
from torch import nn

from pipeline.optimizers import make_optimizer, set_rate
from pipeline.trainsettings import TrainSettings


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def rates(optimizer):
    return {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8}),
    ],
)
def test_the_config_names_the_optimizer(name, kind, values):
    optimizer = make_optimizer(network(), TrainSettings(optimizer=name, momentum=0.8, learning_rate=0.2))
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == group["peak_lr"] == 0.2
        assert {key: group[key] for key in values} == values


def test_sgd_without_momentum_is_plain():
    group = make_optimizer(network(), TrainSettings(optimizer="sgd", momentum=0)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0, False)


def test_weights_decay_and_biases_and_normalisations_do_not():
    net = network()
    found = rates(make_optimizer(net, TrainSettings(weight_decay=0.1)))
    assert {name: found[id(p)][1] for name, p in net.named_parameters()} == {
        "0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.1, "2.bias": 0.0,
    }  # fmt: skip


def test_the_body_has_a_rate_of_its_own_scaled_like_the_heads():
    net = network()
    settings = TrainSettings(
        mode="finetune", learning_rate=0.1, body_learning_rate=0.01, batch_size=512, learning_rate_batch=256
    )
    found = rates(make_optimizer(net, settings, net[2].parameters()))
    assert {name: found[id(p)][0] for name, p in net.named_parameters()} == pytest.approx(
        {"0.weight": 0.02, "0.bias": 0.02, "1.weight": 0.02, "1.bias": 0.02, "2.weight": 0.2, "2.bias": 0.2}
    )


def test_without_a_rate_of_its_own_the_body_learns_like_the_head():
    net = network()
    assert {rate for rate, _ in rates(make_optimizer(net, TrainSettings(), net[2].parameters())).values()} == {1e-3}


def test_what_is_frozen_is_in_no_group():
    net = network()
    net[0].weight.requires_grad = False
    assert id(net[0].weight) not in rates(make_optimizer(net, TrainSettings()))


def test_a_rate_is_the_peak_times_the_factor_however_often_it_is_set():
    optimizer = make_optimizer(network(), TrainSettings(learning_rate=0.4))
    for factor in (0.5, 0.25, 1.0, 0.5):
        set_rate(optimizer, factor)
        assert {group["lr"] for group in optimizer.param_groups} == {0.4 * factor}
