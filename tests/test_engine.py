import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from pipeline.engine import TorchEngine, normalize
from pipeline.networks import LabCNN, Linear
from pipeline.transforms import Transforms

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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("transforms", [Transforms(8, 8), GREY])
def test_normalizing_is_torchvisions_and_puts_channels_first(transforms, layout):
    channels = transforms.num_channels
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 6, channels), dtype=np.uint8))
    for pixels in (batch, batch.float()):
        before = pixels.clone()
        ours = normalize(pixels, transforms, layout)
        theirs = v2.Normalize(transforms.mean, transforms.std)(batch.permute(0, 3, 1, 2).float() / 255)
        assert ours.shape == (3, channels, 8, 6)
        assert ours.dtype == torch.float32
        assert ours.is_contiguous(memory_format=layout)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert torch.equal(pixels, before)


def test_several_threads_get_their_own_answers(run_together):
    torch.manual_seed(0)
    engine, batches = TorchEngine(LabCNN(3, 8, 1), GREY), [pixels(6, seed) for seed in range(8)]
    expected = [engine(batch) for batch in batches]
    answers = run_together(*[lambda batch=batch: engine(batch) for batch in batches])
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(expected, answers, strict=True))
