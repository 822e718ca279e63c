import numpy as np
import pytest
import torch

from pipeline.logits import log_softmax, memory_errors


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


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), MemoryError),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), MemoryError),
        (RuntimeError("shapes do not fit"), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate memory"), torch.OutOfMemoryError),
    ],
)
def test_memory_that_runs_out_is_told_from_other_errors(error, raised):
    with pytest.raises(raised) as caught, memory_errors():
        raise error
    assert type(caught.value) is raised
