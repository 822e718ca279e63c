import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax

from pipeline.temperature import FEWEST, HIGHEST, LOWEST, fit_temperature


def drawn(temperature: float, num: int = 4000, classes: int = 5):
    """Return logits that are `temperature` times too large for classes drawn from their probabilities."""
    random = np.random.default_rng(3)
    logits = random.normal(0, 2, (num, classes))
    probabilities = np.exp(log_softmax(logits, axis=1))
    return (temperature * logits).astype(np.float32), np.array([random.choice(classes, p=row) for row in probabilities])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature):
    logits, classes = drawn(temperature)
    found = fit_temperature(logits, classes)
    assert found == pytest.approx(temperature, rel=0.05)

    def loss(t: float) -> float:
        return float(-log_softmax(logits.astype(float) / t, axis=1)[np.arange(len(classes)), classes].mean())

    assert found == pytest.approx(minimize_scalar(loss, bounds=(0.1, 10), method="bounded").x, rel=1e-3)


def test_of_multi_label_answers_what_is_known_is_fitted():
    random = np.random.default_rng(4)
    logits = random.normal(0, 2, (2000, 3))
    known = (random.random(logits.shape) < expit(logits)).astype(np.int8)
    assert fit_temperature(2 * logits, known) == pytest.approx(2, rel=0.05)
    logits[:1000] *= -100
    known[:1000] = -1
    assert fit_temperature(2 * logits, known) == pytest.approx(2, rel=0.1)


def test_the_bounds_hold_and_few_images_say_nothing():
    sure, classes = np.tile([[5.0, 0.0]], (30, 1)), np.zeros(30, np.int64)
    assert fit_temperature(sure, classes) == LOWEST
    assert fit_temperature(sure, 1 - classes) == HIGHEST
    assert fit_temperature(sure[: FEWEST - 1], classes[: FEWEST - 1]) == 1.0
