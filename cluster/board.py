"""A tiny actor that workers post numbers to and the driver reads: how far a training is. Imports nothing heavy."""


class Board:
    """Examples done, by poster."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}

    def post(self, name: str, done: int) -> None:
        """Set how much `name` has done."""
        self._done[name] = done

    def total(self) -> int:
        """Return what all have done."""
        return sum(self._done.values())
