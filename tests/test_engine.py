import numpy as np
import pytest
import torch
from torch import nn

from pipeline.engine import TorchEngine
from pipeline.logits import log_softmax
from pipeline.transforms import Transforms
from pipeline.zoo import LabCNN, Linear

GREY = Transforms(8, 8, "L", (0.25,), (0.5,))


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def test_output_is_the_network_on_normalised_pixels():
    torch.manual_seed(0)
    net = Linear(3, 8, 1)
    batch = pixels(5)
    weight, bias = net.fc.weight.detach().numpy(), net.fc.bias.detach().numpy()
    by_hand = ((batch.reshape(5, 64) / 255 - 0.25) / 0.5) @ weight.T + bias
    output = TorchEngine(net, GREY)(batch)
    assert output.dtype == np.float32
    assert np.allclose(output, by_hand, atol=1e-5)


def test_answers_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    engine, batch = TorchEngine(LabCNN(3, 8, 1), GREY), pixels(9)
    alone = np.concatenate([engine(batch[i : i + 1]) for i in range(9)])
    assert np.allclose(engine(batch), alone, atol=1e-6)


def test_network_is_put_into_evaluation_mode():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    engine, batch = TorchEngine(net, GREY), pixels(2)
    assert np.array_equal(engine(batch), engine(batch))


def test_what_was_used_is_described():
    used = TorchEngine(Linear(3, 8, 1), GREY).describe()
    assert (used["engine"], used["precision"]) == ("torch", "fp32")
    assert used["device"]
    assert used["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("logits", "temperature", "expected"),
    [
        ([0, 0], 1, [0.5, 0.5]),
        ([np.log(3), 0], 1, [0.75, 0.25]),
        ([2 * np.log(3), 0], 2, [0.75, 0.25]),
        ([1e4, 0], 1, [1, 0]),
        ([-1e30, -1e30, -1e30], 1, [1 / 3] * 3),
        ([np.log(3) + 500, 500], 1, [0.75, 0.25]),
    ],
)
def test_softmax_of_known_logits(logits, temperature, expected):
    probabilities = np.exp(log_softmax(np.array([logits], np.float32), temperature))
    assert np.allclose(probabilities, [expected], atol=1e-5)


def test_log_softmax_stays_finite_where_the_probability_is_zero():
    logs = log_softmax(np.array([[1e4, 0]], np.float32))
    assert logs[0].tolist() == [0.0, -1e4]


def test_log_softmax_equals_torch():
    logits = np.random.default_rng(1).normal(0, 8, (50, 7)).astype(np.float32)
    expected = torch.log_softmax(torch.from_numpy(logits).double() / 1.7, 1).numpy()
    assert np.allclose(log_softmax(logits, 1.7), expected, atol=1e-12)
