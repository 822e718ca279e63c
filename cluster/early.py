"""Shards of a long listing before it ends: the driver packs what it has seen so far and keeps it as parts of the plan to come.

A part whose snapshot was never completed counts as history, so what is labelled from it stays labelled however the listing
ends. The plan itself is made of the whole listing, later, and finds these parts there.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import monotonic

from pipeline.plans import PartWriter
from pipeline.settings import InputSettings
from pipeline.shards import Segment, Shard, make_shards
from pipeline.sources import files_of, format_of
from pipeline.storage import Entry

# A listing that takes no longer than this is waited for. Then a part is kept so often, and ever more rarely: after ten
# times so long they are a tenth of the time so far apart, so that an hour's listing has some dozens.
PATIENCE_S = 1.0
SHARE = 0.1

Emit = Callable[[Sequence[Shard]], None]
# Reads footers: yields the segments of files that can be read, some files at a time. The others are the plan's business.
Scan = Callable[[Sequence[Entry], str], Iterator[Sequence[Segment]]]


@dataclass(frozen=True)
class History:
    """What earlier plans say: the format of the input ("" when there is none), the files that they know, where parts go now."""

    kind: str
    files: Collection[tuple[str, int, str]]
    parts: PartWriter


class EarlyShards:
    """Packs new files into shards while they are listed, and hands over those of every part that is kept."""

    def __init__(self, settings: InputSettings, read_history: Callable[[], History], scan: Scan, emit: Emit) -> None:
        """Start the clock. The history is read once the listing turns out to be long: no short one pays for it."""
        self._settings, self._read_history, self._scan, self._emit = settings, read_history, scan, emit
        self._kind = ""
        self._files: list[Entry] = []
        self._segments: list[Segment] = []
        self.emitted = False
        self._started = monotonic()
        self._next_at = self._started + PATIENCE_S

    @cached_property
    def _history(self) -> History:
        return self._read_history()

    def take(self, file: Entry) -> None:
        """Take note of a listed file; every now and then this reads footers and keeps a part."""
        self._files.append(file)
        if monotonic() >= self._next_at:
            self._pack()

    def finish(self) -> None:
        """Keep what is left when the listing has ended, unless it was short: then it is planned in one piece."""
        if self.emitted:
            self._pack()
            self._keep(list(make_shards(self._segments, self._settings.shard_images)))

    def _pack(self) -> None:
        # What the first names say. A table among images that turns up later is planned alone, and these labels are in vain.
        self._kind = self._kind or self._history.kind or format_of(self._settings, self._files)
        new = [file for file in files_of(self._kind, self._files) if file.identity not in self._history.files]
        self._files = []
        if self._kind != "csv":  # they are read whole: a task for the cluster
            for segments in self._scan(new, self._kind):
                self._segments += segments
                if monotonic() >= self._next_at:
                    self._keep_full()
        self._wait()

    def _keep_full(self) -> None:
        shards = list(make_shards(self._segments, self._settings.shard_images))
        self._segments = [segment for shard in shards[-1:] for segment in shard.segments]
        self._keep(shards[:-1])

    def _keep(self, shards: Sequence[Shard]) -> None:
        if shards:
            self._history.parts.write(shards)
            self.emitted = True
            self._emit(shards)
        self._wait()

    def _wait(self) -> None:
        now = monotonic()
        self._next_at = now + max(PATIENCE_S, SHARE * (now - self._started))
