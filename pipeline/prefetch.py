"""An iterator that works ahead in a thread: the next batch is read and decoded while this one is trained on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


class End:
    """What comes after the last item."""


def ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int = 2) -> Iterator[Made]:
    """Yield `make(item)` for each item, in order; up to `depth` of them are made before they are asked for.

    One thread asks for the items and makes them all, so neither need be safe for several, and items that come `ahead`
    themselves hold nobody up. What is raised there is raised in its turn.
    """
    left, made = iter(items), deque[Future[Made | End]]()

    def make_next() -> Made | End:
        for item in left:
            return make(item)
        return End()

    with ThreadPoolExecutor(1, "prefetch") as thread:
        try:
            made.extend(thread.submit(make_next) for _ in range(depth))
            while not isinstance(result := made.popleft().result(), End):
                made.append(thread.submit(make_next))
                yield result
        finally:
            for future in made:
                future.cancel()
