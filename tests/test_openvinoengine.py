import numpy as np
import pytest
import torch
from torch import nn

from pipeline.engine import TorchEngine
from pipeline.errors import ModelError
from pipeline.openvinoengine import CHUNK, OpenVINOEngine, convert, unpack
from pipeline.transforms import Transforms

GREY = Transforms(8, 8, "L", (0.25,), (0.5,))
COLOR = Transforms(16, 16, "RGB", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


class Untraceable(nn.Module):
    def forward(self, images):
        raise KeyError("no such thing")


def network(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def pixels(transforms: Transforms, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, transforms.crop_px, transforms.crop_px, transforms.num_channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("transforms", [GREY, COLOR], ids=["grey", "color"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_answers_are_the_references_within_the_precision(transforms, precision, tolerance):
    net, batch = network(transforms.num_channels), pixels(transforms, 2 * CHUNK + 3)
    expected = TorchEngine(net, transforms)(batch)
    output = OpenVINOEngine(convert(net, transforms), precision, 1)(batch)
    assert (output.dtype, output.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(output, expected, atol=tolerance)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1])
def test_answers_do_not_depend_on_the_batch(count):
    engine, batch = OpenVINOEngine(convert(network(1), GREY), "fp32", 1), pixels(GREY, 3 * CHUNK)
    parts = [engine(batch[start : start + count]) for start in range(0, len(batch), count)]
    assert np.array_equal(np.concatenate(parts), engine(batch))


def test_several_threads_get_their_own_answers(run_together):
    engine, batches = OpenVINOEngine(convert(network(1), GREY), "fp32", 2), [pixels(GREY, 20, n) for n in range(8)]
    expected = [engine(batch) for batch in batches]
    answers = run_together(*[lambda batch=batch: engine(batch) for batch in batches])
    assert all(np.array_equal(a, b) for a, b in zip(expected, answers, strict=True))


def test_a_network_that_cannot_be_converted_is_named():
    with pytest.raises(ModelError, match=r"OpenVINO cannot convert Untraceable: .*label.engine: torch"):
        convert(Untraceable(), GREY)


def test_a_damaged_model_is_refused():
    data = convert(network(1), GREY)
    for damaged in (b"", b"zip", data[: len(data) // 2]):
        with pytest.raises(ModelError, match="is damaged"):
            unpack(damaged)


def test_what_was_used_is_described():
    used = OpenVINOEngine(convert(network(1), GREY), "bf16", 1).describe()
    assert (used["engine"], used["precision"]) == ("openvino", "bf16")
    assert used["device"]
