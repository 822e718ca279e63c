from itertools import pairwise

import pytest

from pipeline.stops import EVERY_S, Stops
from pipeline.trainsettings import TrainSettings


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def stops_of(settings, clock, steps, step_s, start=0):
    """Return (step, seconds, saved) of each stop among `steps` steps of `step_s` seconds."""
    stops, found, began = Stops(settings, lambda tensor: tensor, start, clock), [], clock.now
    for step in range(start + 1, start + steps + 1):
        clock.now += step_s(step) if callable(step_s) else step_s
        if stops.due(step):
            found.append((step, clock.now - began, stops.agree(step)))
    return found


def test_the_first_stop_is_the_first_step_and_then_they_spread_to_their_interval():
    found = stops_of(TrainSettings(), Clock(), 5000, 0.1)
    steps = [step for step, _, _ in found]
    assert steps[:7] == [1, 3, 7, 15, 31, 63, 127]
    gaps = [second - first for first, second in pairwise(steps)]
    assert all(gap == pytest.approx(EVERY_S / 0.1, abs=1) for gap in gaps[8:])


@pytest.mark.parametrize("minutes", [0.5, 2])
def test_a_checkpoint_is_due_after_so_many_minutes(minutes):
    found = stops_of(TrainSettings(checkpoint_minutes=minutes), Clock(), 20_000, 0.05)
    times = [seconds for _, seconds, saved in found if saved]
    gaps = [second - first for first, second in pairwise([0.0, *times])]
    assert len(times) >= 1000 // (60 * minutes) - 1
    assert all(60 * minutes - EVERY_S <= gap <= 60 * minutes + EVERY_S for gap in gaps)


def test_a_step_that_is_longer_than_the_interval_is_followed_by_a_stop():
    found = stops_of(TrainSettings(checkpoint_minutes=1), Clock(), 20, 45.0)
    assert [step for step, _, _ in found] == list(range(1, 21))
    assert [saved for _, _, saved in found] == [False, True] * 10


def test_a_pace_that_slows_down_delays_a_stop_by_the_new_pace_only_once():
    found = stops_of(TrainSettings(), Clock(), 1200, lambda step: 0.01 if step < 1000 else 1.0)
    late = [seconds for step, seconds, _ in found if step > 1000]
    assert len(late) >= 2


@pytest.mark.parametrize("every", [1, 7, 50])
@pytest.mark.parametrize("start", [0, 3, 70])
def test_checkpoints_by_steps_are_at_their_multiples_however_fast_it_goes(every, start):
    found = stops_of(TrainSettings(checkpoint_steps=every), Clock(), 300, 0.001, start)
    assert [step for step, _, saved in found if saved] == [
        step for step in range(start + 1, start + 301) if step % every == 0
    ]


def test_rank_0_decides():
    clock, said = Clock(), []

    def announce(tensor):
        said.append(tensor.tolist())
        return tensor * 0 + tensor.new_tensor([42.0, 1.0])

    stops = Stops(TrainSettings(), announce, 0, clock)
    clock.now += 1
    assert stops.due(1)
    assert stops.agree(1) is True
    assert said == [[3.0, 0.0]]
    assert not stops.due(41)
    assert stops.due(42)
