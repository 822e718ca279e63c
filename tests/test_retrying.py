import logging

import pytest

from pipeline import retrying
from pipeline.errors import NotFoundError, TransientError
from pipeline.retrying import FIRST_PAUSE_S, LONGEST_PAUSE_S, Patience, Trial, retried


class Clock:
    """Time that passes only in sleep."""

    def __init__(self):
        self.now, self.pauses = 100.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now += pause_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(retrying, "time", made)
    return made


@pytest.fixture
def longest(monkeypatch):
    """Chance that always picks the longest pause."""
    monkeypatch.setattr(retrying.random, "uniform", lambda least, most: most)


def failing(times: int, error: type[Exception] = TransientError):
    """Return an action that fails so often before it returns how often it was called."""
    calls = []

    def action():
        calls.append(1)
        if len(calls) <= times:
            raise error("s3://b/x: 503")
        return len(calls)

    return action


@pytest.mark.parametrize("times", [0, 1, 3])
def test_what_passes_within_the_retries_is_only_waited_for(clock, times):
    assert retried(failing(times), Patience(3, 300)) == times + 1
    assert len(clock.pauses) == times


def test_patience_ends_after_the_retries_and_says_so(clock):
    action = failing(99)
    with pytest.raises(TransientError, match=r"s3://b/x: 503 \(given up after 3 retries in \d s; storage.max_retries"):
        retried(action, Patience(3, 300))
    assert len(clock.pauses) == 3


def test_patience_ends_before_a_pause_that_would_outlast_it(clock, longest):
    with pytest.raises(TransientError, match="after 5 retries in 6 s"):
        retried(failing(99), Patience(99, 10))
    assert clock.now - 100 <= 10


def test_an_answer_is_not_asked_for_again(clock):
    with pytest.raises(NotFoundError):
        retried(failing(1, NotFoundError), Patience(3, 300))
    assert clock.pauses == []


def test_pauses_double_up_to_a_limit(clock, longest):
    retried(failing(11), Patience(20, 300))
    assert clock.pauses[:4] == [FIRST_PAUSE_S * factor for factor in (1, 2, 4, 8)]
    assert clock.pauses[-1] == max(clock.pauses) == LONGEST_PAUSE_S


def test_pauses_are_spread_from_nothing_to_the_whole():
    pauses = [Patience(1, 1).pause_s(4) for _ in range(2000)]
    limit = FIRST_PAUSE_S * 8
    assert 0 <= min(pauses) < 0.1 * limit
    assert 0.9 * limit < max(pauses) <= limit


def test_progress_restores_patience(clock):
    trial = Trial(Patience(2, 300))
    for _ in range(5):
        trial.failed(TransientError("x"))
        trial.failed(TransientError("x"))
        trial.progressed()
    trial.failed(TransientError("x"))
    trial.failed(TransientError("x"))
    with pytest.raises(TransientError):
        trial.failed(TransientError("x"))


def test_a_store_that_is_away_is_mentioned_one_that_stumbles_is_not(clock, longest, caplog):
    caplog.set_level(logging.WARNING, "nightshift")
    retried(failing(4), Patience(20, 300))
    assert caplog.messages == []
    retried(failing(8), Patience(20, 300))
    assert caplog.messages == [f"s3://b/x: 503; retry {n} of 20 in {s} s" for n, s in ((7, 13), (8, 26))]


def test_the_default_outlasts_a_store_that_is_away_for_two_minutes():
    from pipeline.settings import StorageSettings
    from pipeline.storage import patience_of

    patience = patience_of(StorageSettings())
    expected_s = sum(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) / 2 for n in range(patience.max_retries))
    assert 120 < expected_s < patience.total_s
