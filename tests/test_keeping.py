import torch
from torch import nn

from pipeline.keeping import Keeping
from pipeline.trainsettings import TrainSettings


def train(keeping, net, *losses, history=()):
    """Go through epochs of one step each: the weight becomes the epoch's number."""
    history = list(history)
    for loss in losses:
        with torch.no_grad():
            net.weight.fill_(len(history) + 1.0)
        keeping.stepped(len(history) + 1)
        history.append({"val_loss": loss})
        keeping.closed(history)
    return history


def network():
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.zero_()
    return net


def sealed(net, keeping):
    keeping.put()
    return net.weight.item()


def test_the_last_weights_are_sealed_by_default():
    net = network()
    keeping = Keeping(net, TrainSettings())
    train(keeping, net, 3.0, 1.0, 2.0)
    assert keeping.capture() == {}
    assert sealed(net, keeping) == 3.0


def test_early_stopping_seals_the_best_ones():
    net = network()
    keeping = Keeping(net, TrainSettings(early_stopping=5))
    train(keeping, net, 3.0, 1.0, 2.0)
    assert sealed(net, keeping) == 2.0


def test_an_average_is_sealed_and_of_the_best_epoch_where_both_are_asked_for():
    nets = [network(), network()]
    average, both = (
        Keeping(net, TrainSettings(average=0.5, early_stopping=stop)) for net, stop in zip(nets, (None, 9), strict=True)
    )
    for keeping, net in zip((average, both), nets, strict=True):
        train(keeping, net, 3.0, 1.0, 2.0)
    decays = [2 / 11, 3 / 12, 4 / 13]
    first = (1 - decays[0]) * 1.0
    second = decays[1] * first + (1 - decays[1]) * 2.0
    third = decays[2] * second + (1 - decays[2]) * 3.0
    assert abs(sealed(nets[0], average) - third) < 1e-6
    assert abs(sealed(nets[1], both) - second) < 1e-6


def test_all_of_it_goes_on_from_a_checkpoint():
    settings = TrainSettings(average=0.5, early_stopping=9)
    net, other = network(), network()
    keeping = Keeping(net, settings)
    history = train(keeping, net, 1.0, 2.0)
    resumed = Keeping(other, settings)
    resumed.restore({key: tensor.clone() for key, tensor in keeping.capture().items()})
    other.load_state_dict(net.state_dict())
    for one, module in ((keeping, net), (resumed, other)):
        train(one, module, 3.0, 0.5, history=history)
    assert (
        resumed.capture().keys()
        == keeping.capture().keys()
        == {"average.weight", "average.bias", "best.weight", "best.bias"}
    )
    assert all(torch.equal(a, b) for a, b in zip(keeping.capture().values(), resumed.capture().values(), strict=True))
    assert sealed(net, keeping) == sealed(other, resumed)
