"""How much of the work one run takes on: until `label.deadline`, and at most `label.max_images` by whole shards."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pipeline.deadlines import deadline_at
from pipeline.settings import LabelSettings
from pipeline.shards import Shard


class Limits:
    """The limits of one run. They keep shards from starting; a shard that has started ends and is committed."""

    def __init__(self, label: LabelSettings, started: datetime) -> None:
        self._deadline, self._max_images, self._done = label.deadline, label.max_images, 0
        self._ends_at = deadline_at(label.deadline, started) if label.deadline else None

    def passed(self) -> bool:
        """Say whether the deadline is behind us: no new shard starts."""
        return self._ends_at is not None and datetime.now(UTC) >= self._ends_at

    def take(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Return the shards that the run may still start: from the first on, whole, until `max_images` are reached."""
        images = self._done
        for number, shard in enumerate(shards):
            if not self.allow(images):
                return shards[:number]
            images += shard.num_images
        return shards

    def allow(self, images: int) -> bool:
        """Say whether another shard may start after so many images."""
        return self._max_images is None or images < self._max_images

    def count(self, images: int) -> None:
        """Take note of images that were labelled; what failed does not count."""
        self._done += images

    @property
    def reason(self) -> str:
        """Which limit was met, for people; empty when none was."""
        if self.passed() and self._ends_at:
            return f"label.deadline = {self._deadline} passed at {self._ends_at.astimezone():%Y-%m-%d %H:%M:%S}"
        if self._max_images is not None and self._done >= self._max_images:
            return f"label.max_images = {self._max_images:,} is reached"
        return ""
