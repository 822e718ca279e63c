import threading
from types import SimpleNamespace

import pytest

from cluster import stall
from cluster.stall import StallClock, doing, name_of
from pipeline.batches import decoded_batches
from pipeline.transforms import Transforms


@pytest.fixture
def now(monkeypatch):
    moment = [0.0]
    monkeypatch.setattr(stall.time, "monotonic", lambda: moment[0])
    return moment


def test_the_clock_is_due_at_doubling_intervals_until_something_goes_on(now):
    clock, due = StallClock(10), []
    for moment in range(0, 100, 5):
        now[0] = moment
        if clock.due():
            due.append((moment, clock.silent_s))
    assert due == [(10, 10), (20, 20), (40, 40), (80, 80)]
    clock.progressed()
    assert not clock.due()
    now[0] += 10
    assert clock.due()


@pytest.mark.parametrize(
    ("item", "name"),
    [(SimpleNamespace(id="3f2a"), "shard 3f2a"), (7, "7"), (["a" * 100], f"['{'a' * 78}"), (SimpleNamespace(id=4), "namespace(id=4)")],
)  # fmt: skip
def test_names_of_items(item, name):
    assert name_of(item) == name


def test_a_process_says_where_in_our_code_each_item_is(png):
    """One thread hangs in reading, as from a store that does not answer, and the one that works waits for it."""
    asked, release, names = threading.Event(), threading.Event(), {}

    def chunks():
        asked.set()
        release.wait(60)
        yield []

    def work():
        names[threading.get_ident()] = "shard 3f2a", stall.time.monotonic() - 312
        list(decoded_batches(chunks(), None, Transforms(8, 8), 1))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert asked.wait(60)
        said = doing(names)
    finally:
        release.set()
        thread.join()
    assert said.startswith("shard 3f2a for 312 s in decoded_batches pipeline/batches.py:"), said


def test_a_process_without_work_does_nothing():
    assert "shard" not in doing({})
