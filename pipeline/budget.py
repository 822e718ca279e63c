"""How many bytes of images one process holds at a time, all the shards that it works on together.

Half of the budget is for images that wait, encoded or decoded, half for pictures in the decoder. Nobody who waits for
one half holds back the other, and whoever holds nothing is always let in: so it cannot deadlock, whatever the sizes
and whatever the consumers do, and one item that is larger than the budget passes alone.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

DEFAULT_BYTES = 256 << 20


class Budget:
    """Bytes that may be held; methods may be called from any thread."""

    def __init__(self, limit_bytes: int = DEFAULT_BYTES) -> None:
        self._half_bytes = limit_bytes // 2
        self._changed = Condition()
        self._waiting_bytes = 0  # held by images that wait
        self._picture_bytes, self._queue = 0, deque[object]()

    @contextmanager
    def picture(self, num_bytes: int) -> Iterator[None]:
        """Wait for room to decode a picture, first come, first served; alone when it takes all there is and more."""
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._has_room(num_bytes))
            self._queue.popleft()
            self._picture_bytes += num_bytes
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._picture_bytes -= num_bytes
                self._changed.notify_all()

    def _has_room(self, num_bytes: int) -> bool:
        return not self._picture_bytes or self._picture_bytes + num_bytes <= self._half_bytes


class Share:
    """What one stream of images holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._held_bytes, self._closed = budget, 0, False

    def take(self, num_bytes: int) -> bool:
        """Wait for room, and say whether there is any: not once the share is closed. The first item need not wait."""
        budget = self._budget
        with budget._changed:
            budget._changed.wait_for(
                lambda: self._closed or not self._held_bytes or budget._waiting_bytes + num_bytes <= budget._half_bytes
            )
            if self._closed:
                return False
            self._add(num_bytes)
            return True

    def give(self, num_bytes: int) -> None:
        """Give back what was taken for an item."""
        with self._budget._changed:
            self._add(-num_bytes)

    def close(self) -> None:
        """Give back everything, and let nobody wait any longer."""
        with self._budget._changed:
            self._closed = True
            self._add(-self._held_bytes)

    def _add(self, num_bytes: int) -> None:
        self._held_bytes += num_bytes
        self._budget._waiting_bytes += num_bytes
        self._budget._changed.notify_all()
