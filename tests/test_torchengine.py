import numpy as np
import pytest
import torch
from torch import nn

from pipeline.engine import TorchEngine
from pipeline.torchengine import FastTorchEngine, fused
from pipeline.transforms import Transforms

COLOR, CPU = Transforms(16, 16, "RGB", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), torch.device("cpu")


class Branching(nn.Module):
    """A network whose code cannot be traced: it looks at numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = convolutional()

    def forward(self, images):
        return self.net(images) if images.sum() > -1e9 else images


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.normal_(norm.running_mean)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5)
    )


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.05)])
@pytest.mark.parametrize("make", [convolutional, Branching])
def test_answers_are_the_references_within_the_precision(precision, tolerance, make):
    expected = TorchEngine(make(), COLOR)(pixels(9))
    output = FastTorchEngine(make(), COLOR, precision, CPU)(pixels(9))
    assert (output.dtype, output.shape) == (np.float32, (9, 5))
    np.testing.assert_allclose(output, expected, atol=tolerance)


def test_batch_norms_are_folded_and_the_network_given_stays_as_it_was():
    net = convolutional()
    kinds = [type(module) for module in fused(net).modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.BatchNorm2d in [type(module) for module in net.modules()]
    FastTorchEngine(net, COLOR, "bf16", CPU)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_a_network_that_cannot_be_traced_stays_unfolded():
    assert nn.BatchNorm2d in [type(module) for module in fused(Branching()).modules()]


def test_several_threads_get_their_own_answers(run_together):
    engine, batches = FastTorchEngine(convolutional(), COLOR, "fp32", CPU), [pixels(6, seed) for seed in range(8)]
    expected = [engine(batch) for batch in batches]
    answers = run_together(*[lambda batch=batch: engine(batch) for batch in batches])
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(expected, answers, strict=True))


def test_what_was_used_is_described():
    used = FastTorchEngine(convolutional(), COLOR, "bf16", CPU).describe()
    assert (used["engine"], used["precision"], used["cuda_graph"]) == ("torch", "bf16", False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("batch_size", [0, 8])
def test_a_gpu_answers_the_same_with_and_without_a_recorded_graph(batch_size, run_together):
    device = torch.device("cuda")
    expected = TorchEngine(convolutional(), COLOR)(pixels(8))
    engine = FastTorchEngine(convolutional(), COLOR, "fp16", device, batch_size)
    for answer in run_together(*[lambda: engine(pixels(8))] * 4):
        np.testing.assert_allclose(answer, expected, atol=0.05)
    np.testing.assert_allclose(engine(pixels(8)[:3]), expected[:3], atol=0.05)
