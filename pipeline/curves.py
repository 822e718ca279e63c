"""The curves of a training as it goes: event files that TensorBoard reads, and JSON beside them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from tensorboardX import SummaryWriter

from pipeline.documents import Document, encode
from pipeline.errors import StorageError, TransientError
from pipeline.pulse import Pulse
from pipeline.storage import Storage

# TensorBoard takes every file whose name says tfevents, one in a folder for each run.
EVENTS, JSON = "events.out.tfevents.0.nightshift", "curves.json"
TAGS = {
    "train_loss": "loss/training", "val_loss": "loss/validation", "train_top1": "accuracy/training", "val_top1": "accuracy/validation",
    "val_map": "mean_average_precision/validation", "learning_rate": "learning_rate", "seconds": "seconds_per_epoch",
}  # fmt: skip


class Curves:
    """Writes the curves into folders of the store. A picture that is missing stops no training: it is warned of once."""

    def __init__(self, store: Storage, started_at: str, pulse: Pulse) -> None:
        self._store, self._pulse = store, pulse
        self._started = datetime.fromisoformat(started_at).timestamp()
        self._warned = False

    def write(self, folder: str, history: Sequence[Document]) -> None:
        """Replace the curves in a folder by those of the whole history.

        An object store cannot append. What stood in an event file before stays as long as it was, so a TensorBoard that looks
        on goes on reading where it was.
        """
        try:
            self._store.write(f"{folder}/{EVENTS}", event_file(history, self._started))
            self._store.write(f"{folder}/{JSON}", encode({"history": list(history)}))
        except (StorageError, TransientError) as error:
            if not self._warned:
                self._pulse.warn(f"curves: they cannot be written, and training goes on: {error}")
            self._warned = True


def event_file(history: Iterable[Document], started: float) -> bytes:
    """Return an event file of the records of epochs; `started` is the time of the first step, seconds since 1970."""
    at = started
    with TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for record in history:
                at += record["seconds"]
                for key, tag in TAGS.items():
                    if record.get(key) is not None:
                        writer.add_scalar(tag, record[key], record["epoch"], at)
        [path] = Path(folder).iterdir()
        return path.read_bytes()
