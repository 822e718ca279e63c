import random
import threading
import time

import pytest

from pipeline.budget import Budget, Share


def until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def in_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def blocked(thread: threading.Thread) -> bool:
    thread.join(0.1)
    return thread.is_alive()


def test_pictures_share_half_the_budget():
    budget, inside = Budget(200), []

    def decode(num_bytes: int, leave: threading.Event) -> None:
        with budget.picture(num_bytes):
            inside.append(num_bytes)
            leave.wait(30)
        inside.remove(num_bytes)

    leaves = [threading.Event() for _ in range(3)]
    threads = [in_thread(lambda n=n, e=e: decode(n, e)) for n, e in zip((60, 40, 10), leaves, strict=True)]
    until(lambda: len(inside) == 2 or 10 in inside)
    assert sum(inside) <= 100
    for event in leaves:
        event.set()
    for thread in threads:
        thread.join(30)
    assert inside == []


def test_a_picture_larger_than_the_budget_is_decoded_alone():
    budget, order = Budget(200), []
    with budget.picture(5000):  # nothing else is in: it need not wait
        other = in_thread(lambda: order.append(budget.picture(1).__enter__()))
        assert blocked(other)
    other.join(30)
    assert order == [None]


def test_a_large_picture_is_not_overtaken_for_ever_by_small_ones():
    budget, entered = Budget(200), []

    def decode(name: str, num_bytes: int) -> None:
        with budget.picture(num_bytes):
            entered.append(name)

    with budget.picture(50):
        large = in_thread(lambda: decode("large", 90))
        until(lambda: len(budget._queue) == 1)
        small = in_thread(lambda: decode("small", 10))  # there is room for it, but it came later
        until(lambda: len(budget._queue) == 2)
        assert entered == []
    large.join(30)
    small.join(30)
    assert entered == ["large", "small"]


def test_an_error_in_the_decoder_gives_the_bytes_back():
    budget = Budget(200)
    for _ in range(3):
        with pytest.raises(MemoryError), budget.picture(5000):
            raise MemoryError
    assert budget._picture_bytes == 0


def test_what_waits_is_bounded_and_room_is_given_back():
    budget = Budget(200)
    share, taken = Share(budget), []
    assert share.take(70)
    waiting = in_thread(lambda: taken.append(share.take(40)))
    assert blocked(waiting)
    share.give(70)
    waiting.join(30)
    assert taken == [True]


def test_whoever_holds_nothing_is_let_in():
    budget = Budget(200)
    one, other = Share(budget), Share(budget)
    assert one.take(1000)
    assert other.take(1000)  # else two streams whose consumers wait for each other would never end


def test_closing_wakes_who_waits_and_gives_all_back():
    budget, answers = Budget(200), []
    share = Share(budget)
    share.take(90)
    waiting = in_thread(lambda: answers.append(share.take(90)))
    assert blocked(waiting)
    share.close()
    waiting.join(30)
    assert answers == [False]
    assert budget._waiting_bytes == 0
    assert not share.take(1)


def test_chance_sizes_in_many_threads_end_and_never_exceed_the_bounds():
    budget, limit, worst = Budget(1000), 500, []
    lock, inside = threading.Lock(), []

    def work(seed: int) -> None:
        random_ = random.Random(seed)
        for _ in range(200):
            size = random_.choice([1, 10, 100, 400, 2000])
            with budget.picture(size):
                with lock:
                    inside.append(size)
                    worst.append((sum(inside), len(inside)))
                with lock:
                    inside.remove(size)

    threads = [in_thread(lambda seed=seed: work(seed)) for seed in range(8)]
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert all(total <= limit or count == 1 for total, count in worst)
