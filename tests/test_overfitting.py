import pytest

from pipeline.overfitting import overfitting


def history(*epochs):
    keys = ("train_loss", "val_loss", "train_top1", "val_top1")
    return [{"epoch": n, **dict(zip(keys, values, strict=True))} for n, values in enumerate(epochs, 1)]


RISING = history((1.0, 1.1, 0.6, 0.6), (0.6, 0.9, 0.8, 0.7), (0.3, 1.0, 0.95, 0.71))


def test_the_gap_is_that_of_the_sealed_epoch():
    assert overfitting(RISING, 3) == {
        "epoch": 3, "training": 0.95, "validation": 0.71, "gap": pytest.approx(0.24), "worse_since": 2,
    }  # fmt: skip
    assert overfitting(RISING, 2)["gap"] == pytest.approx(0.1)


def test_only_a_loss_that_rises_while_training_goes_on_falling_is_worse():
    assert overfitting(RISING[:2], 2)["worse_since"] is None
    diverged = [*RISING[:2], {**RISING[2], "train_loss": 2.0}]
    assert overfitting(diverged, 3)["worse_since"] is None


def test_without_validation_nothing_is_known():
    assert overfitting(history((1.0, None, 0.5, None)), 1) is None
