"""An iterator that works ahead in a thread: the next batch is read and decoded while this one is trained on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int = 2) -> Iterator[Made]:
    """Yield `make(item)` for each item, in order; up to `depth` of them are made before they are asked for.

    One thread makes them all, so `make` need not be safe for several. What it raises is raised in its turn.
    """
    left, made = iter(items), deque[Future[Made]]()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        try:
            made.extend(thread.submit(make, item) for item in islice(left, depth))
            while made:
                result = made.popleft().result()
                made.extend(thread.submit(make, item) for item in islice(left, 1))
                yield result
        finally:
            for future in made:
                future.cancel()
