import math

import pytest
import torch
from torch import nn

from pipeline.schedules import peak_rate, rate_factor
from pipeline.trainsettings import TrainSettings


def factors(num_steps, steps_per_epoch=10, **settings):
    told = TrainSettings(**settings)
    return [rate_factor(told, step, num_steps, steps_per_epoch) for step in range(num_steps)]


def test_a_constant_rate_is_one_after_its_warm_up():
    assert factors(30) == [1.0] * 30
    found = factors(30, warmup_epochs=0.5)
    assert found[:5] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert found[5:] == [1.0] * 25


def test_the_cosine_is_torchs():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert factors(40, schedule="cosine") == pytest.approx(expected)
    warmed = factors(50, schedule="cosine", warmup_epochs=1)
    assert warmed[10:] == pytest.approx(expected)
    assert warmed[:10] == pytest.approx([n / 11 for n in range(1, 11)])


@pytest.mark.parametrize("num_steps", [10, 57, 1000])
def test_the_one_cycle_is_torchs(num_steps):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=num_steps)
    expected = [optimizer.param_groups[0]["lr"]]
    for _ in range(num_steps - 1):
        optimizer.step()
        schedule.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert factors(num_steps, schedule="one_cycle") == pytest.approx(expected, abs=1e-9)


def test_the_one_cycle_rises_as_long_as_it_is_told():
    found = factors(100, schedule="one_cycle", warmup_epochs=5)
    assert found.index(max(found)) == 49
    assert max(found) == 1.0


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 50])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_every_factor_of_short_trainings_is_sane(schedule, warmup_epochs, num_steps):
    found = factors(num_steps, 2, schedule=schedule, warmup_epochs=warmup_epochs)
    assert all(math.isfinite(factor) and 0 < factor <= 1 for factor in found)


def test_the_rate_is_scaled_with_the_batch_where_the_config_says_for_which_it_is():
    assert peak_rate(TrainSettings(learning_rate=0.1, batch_size=64)) == 0.1
    assert peak_rate(TrainSettings(learning_rate=0.1, batch_size=64, learning_rate_batch=256)) == pytest.approx(0.025)
    assert peak_rate(TrainSettings(learning_rate=0.1, batch_size=1024, learning_rate_batch=256)) == pytest.approx(0.4)
