"""A tiny actor that workers post to and the driver reads: how far a training is, and why it was refused. Imports nothing heavy."""

from pipeline.errors import NightshiftError


class Board:
    """Examples done, by poster, and the first refusal."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._refusal: NightshiftError | None = None

    def post(self, name: str, done: int) -> None:
        """Set how much `name` has done."""
        self._done[name] = done

    def refuse(self, error: NightshiftError) -> None:
        """Say that trying again would end in the same error; the first one stays."""
        self._refusal = self._refusal or error

    def read(self) -> tuple[int, NightshiftError | None]:
        """Return what all have done, and the refusal if there is one."""
        return sum(self._done.values()), self._refusal
