import pytest
import torch
from torch import nn

from pipeline.checkpoints import Checkpoints
from pipeline.seat import Seat
from pipeline.storage import open_storage
from pipeline.trainstate import Position, capture, restore


@pytest.fixture
def checkpoints(tmp_path, storage_settings):
    return Checkpoints(open_storage(str(tmp_path), storage_settings), "k")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step(net, optimizer, number):
    torch.manual_seed(number)
    optimizer.zero_grad()
    net(torch.randn(6, 3)).square().sum().backward()
    optimizer.step()


OPTIMIZERS = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), 1e-2, weight_decay=1e-3),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), 1e-2, momentum=0.9, nesterov=True),
    "sgd_without_momentum": lambda net: torch.optim.SGD(net.parameters(), 1e-2),
}
SUMS = torch.tensor([[1 / 3, 5.0, 9.0], [1e-9 + 2 / 3, 4.0, 9.0]], dtype=torch.float64)
POSITION = Position([{"epoch": 1, "train_loss": 1 / 7}], 5, 1.25, 90, 1.1, SUMS)


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_going_on_from_a_checkpoint_is_bit_for_bit_going_on(checkpoints, make_optimizer):
    net = network()
    optimizer = make_optimizer(net)
    for number in range(3):
        step(net, optimizer, number)
    checkpoints.save(3, *capture(POSITION, net, optimizer))
    checkpoints.settle()

    other = network()
    other_optimizer = make_optimizer(other)
    position = restore(checkpoints.newest(), other, other_optimizer)
    assert torch.equal(position.sums, SUMS)
    for name in ("history", "step", "seconds", "examples", "first_loss", "epoch"):
        assert getattr(position, name) == getattr(POSITION, name)
    for number in range(3, 6):
        step(net, optimizer, number)
        step(other, other_optimizer, number)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_as_many_workers_as_then_take_their_own_sums():
    assert [POSITION.sums_of(Seat(rank, 2)).tolist() for rank in (0, 1)] == SUMS.tolist()


@pytest.mark.parametrize("world", [1, 4])
def test_of_another_number_of_workers_rank_0_takes_all_sums(world):
    taken = [POSITION.sums_of(Seat(rank, world)) for rank in range(world)]
    assert torch.equal(taken[0], SUMS.sum(0))
    assert not any(sums.any() for sums in taken[1:])
