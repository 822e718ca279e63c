import copy

import pytest
import torch
from torch import nn

from pipeline.losses import Targets
from pipeline.seat import Seat
from pipeline.stepping import Stepper, Trainee, counted
from pipeline.trainsettings import TrainSettings

SGD = {"optimizer": "sgd", "momentum": 0, "learning_rate": 0.5}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(count=12):
    random = torch.Generator().manual_seed(1)
    return torch.randn(count, 6, generator=random), torch.randint(0, 3, (count,), generator=random)


def step(net, settings, inputs, targets, number=0, ready=lambda: None, forward=None, seat=None, size=None):
    trainee = Trainee(net, forward or net, net.train)
    stepper = Stepper(trainee, TrainSettings(**settings), seat or Seat(), 10, 5)
    return stepper.step(inputs, Targets(targets), size or len(targets), number, ready)


def moved(settings, *arguments, **more):
    """Return how far the weights went in one step, and what was counted."""
    net = network()
    start = copy.deepcopy(net.state_dict())
    sums = step(net, settings, *(arguments or batch()), **more)
    return {key: tensor - start[key] for key, tensor in net.state_dict().items()}, sums


def test_a_step_goes_down_the_gradient_of_the_mean():
    net, (inputs, targets) = network(), batch()
    nn.functional.cross_entropy(net(inputs), targets).backward()
    expected = {name: -0.5 * p.grad for name, p in net.named_parameters()}
    found, sums = moved(SGD)
    torch.testing.assert_close(found, expected)
    logits = network()(inputs)
    assert sums.tolist() == pytest.approx(
        [nn.functional.cross_entropy(logits, targets, reduction="sum").item(), (logits.argmax(1) == targets).sum().item(), 12]
    )  # fmt: skip


@pytest.mark.parametrize("pieces", [2, 3, 5, 12, 50])
def test_a_share_that_is_computed_in_pieces_is_the_same_step(pieces):
    whole, cut = moved(SGD), moved(SGD | {"accumulate": pieces})
    torch.testing.assert_close(cut[0], whole[0])
    torch.testing.assert_close(cut[1], whole[1])


class Averaging(nn.Module):
    """Notes which backward passes would average gradients, as DDP does."""

    def __init__(self, net):
        super().__init__()
        self.net, self.alone, self.calls = net, False, []

    def forward(self, inputs):
        self.calls.append((len(inputs), self.alone))
        return self.net(inputs)

    def no_sync(self):
        test = self

        class Alone:
            def __enter__(self):
                test.alone = True

            def __exit__(self, *error):
                test.alone = False

        return Alone()


def test_only_the_last_piece_averages_gradients_over_the_workers():
    net, order = network(), []
    forward = Averaging(net)
    step(net, SGD | {"accumulate": 3}, *batch(10), forward=forward, ready=lambda: order.append(len(forward.calls)))
    assert forward.calls == [(4, True), (3, True), (3, False)]
    assert order == [3], "ready once, when nothing is left but to wait for the others"


def test_two_workers_halves_add_up_to_the_whole():
    inputs, targets = batch(12)
    whole, _ = moved(SGD, inputs, targets)
    halves = [
        moved(SGD, inputs[part], targets[part], seat=Seat(rank, 2), size=12)[0]
        for rank, part in enumerate((slice(0, 5), slice(5, 12)))
    ]
    for key, expected in whole.items():
        torch.testing.assert_close((halves[0][key] + halves[1][key]) / 2, expected)


def test_a_gradient_that_is_too_long_is_cut():
    free, _ = moved(SGD)
    cut, _ = moved(SGD | {"clip_norm": 0.01})
    length = torch.cat([tensor.flatten() for tensor in cut.values()]).norm().item()
    assert length == pytest.approx(0.5 * 0.01, rel=1e-3)
    for key in free:
        torch.testing.assert_close(cut[key] / cut[key].norm(), free[key] / free[key].norm(), rtol=1e-3, atol=1e-4)


def test_the_number_of_the_step_decides_the_rate():
    settings = SGD | {"schedule": "cosine"}
    first, middle = moved(settings, number=0)[0], moved(settings, number=5)[0]
    torch.testing.assert_close(middle["0.weight"], 0.5 * first["0.weight"])


def test_smoothing_is_in_the_loss_that_is_learnt_and_not_in_the_one_that_is_shown():
    net, (inputs, targets) = network(), batch()
    nn.functional.cross_entropy(net(inputs), targets, label_smoothing=0.2).backward()
    expected = {name: -0.5 * p.grad for name, p in net.named_parameters()}
    found, sums = moved(SGD | {"label_smoothing": 0.2})
    torch.testing.assert_close(found, expected)
    assert sums.tolist() == moved(SGD)[1].tolist()


def test_weights_of_classes_are_in_the_loss_that_is_learnt_and_not_in_the_one_that_is_shown():
    net, (inputs, targets) = network(), batch()
    weights = torch.tensor([2.0, 0.0, 1.0])
    each = nn.functional.cross_entropy(net(inputs), targets, reduction="none")
    (each * weights[targets]).mean().backward()
    expected = {name: -0.5 * p.grad for name, p in net.named_parameters()}
    trained = network()
    start = copy.deepcopy(trained.state_dict())
    stepper = Stepper(Trainee(trained, trained, trained.train), TrainSettings(**SGD), Seat(), 10, 5, weights)
    sums = stepper.step(inputs, Targets(targets), 12, 0, lambda: None)
    torch.testing.assert_close({key: tensor - start[key] for key, tensor in trained.state_dict().items()}, expected)
    assert sums.tolist() == moved(SGD)[1].tolist()


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_single():
    seen = []

    class Watching(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, inputs):
            logits = self.net(inputs)
            seen.append(logits.dtype)
            return logits

    net = network()
    sums = step(net, SGD | {"precision": "bf16"}, *batch(), forward=Watching(net))
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert sums[0].item() == pytest.approx(moved(SGD)[1][0].item(), rel=0.02)


def test_counting():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    assert counted(torch.tensor(2.5), logits, torch.tensor([1, 1, 0])).tolist() == [2.5, 2.0, 3.0]
