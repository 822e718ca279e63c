import threading

import pytest

from pipeline.prefetch import ahead


def test_everything_comes_in_order():
    assert list(ahead(lambda n: n * n, range(50))) == [n * n for n in range(50)]
    assert list(ahead(lambda n: n, [])) == []


def test_the_next_ones_are_made_before_they_are_asked_for_and_no_more():
    made, some = [], threading.Event()

    def make(n):
        made.append(n)
        if n == 2:
            some.set()
        return n

    batches = ahead(make, range(10), depth=2)
    assert next(batches) == 0
    assert some.wait(60)
    batches.close()
    assert made == [0, 1, 2]


def test_one_at_a_time_in_one_thread():
    threads = set(ahead(lambda n: threading.get_ident(), range(20), depth=5))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_making_raises_comes_in_its_turn():
    def make(n):
        if n == 3:
            raise ValueError("the fourth")
        return n

    seen = []
    with pytest.raises(ValueError, match="the fourth"):
        seen.extend(ahead(make, range(10)))
    assert seen == [0, 1, 2]


def test_what_the_items_raise_comes_in_its_turn():
    def items():
        yield from range(3)
        raise ValueError("no fourth")

    seen = []
    with pytest.raises(ValueError, match="no fourth"):
        seen.extend(ahead(lambda n: n, ahead(lambda n: n, items(), depth=1)))
    assert seen == [0, 1, 2]


def test_an_item_that_is_late_does_not_hold_up_what_is_made():
    late = threading.Event()

    def items():
        yield from range(3)
        assert late.wait(20)
        yield 3

    batches = ahead(lambda n: n, ahead(lambda n: n, items(), depth=1))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    late.set()
    assert list(batches) == [3]


def test_who_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    for n in ahead(lambda n: n, range(1000)):
        if n == 3:
            break
    assert threading.active_count() <= before + 1  # the loop's generator may not be collected yet
    batches = ahead(lambda n: n, range(1000))
    next(batches)
    batches.close()
    assert threading.active_count() <= before + 1
