"""How often a test set was looked at, and by whom: each version of a model has one look.

Whoever looks at many models and keeps the best one has chosen by the test set, and it no longer tells how good that one
is. So every look is a file in the store that is made once, named after the test set and the version.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from statistics import NormalDist

from pipeline import layout
from pipeline.documents import Document, digest, encode, find_document
from pipeline.errors import AlreadyExistsError
from pipeline.settings import InputSettings, SplitSettings
from pipeline.shards import Shard
from pipeline.storage import Storage

# What decides which rows are judged, and on which truth.
ASKED = (
    "image_column", "uri_column", "label_column", "labels_column", "absent_column", "labels_separator", "split_column",
    "group_column", "filter",
)  # fmt: skip


def rows_digest(
    shards: Sequence[Shard], source: InputSettings, split: SplitSettings | None, splits: Sequence[str]
) -> str:
    """Return what tells these splits' rows from all others: the shards that may hold some, and how rows are chosen there.

    `split` are the shares of a hash split, None where the input names the split of every row. With a hash split any new
    image may be one of these rows, so a new shard makes other rows of them.
    """
    shares = split.model_dump() if split else {}
    if tuple(splits) == ("test",):  # which the share of val does not move
        shares.pop("val", None)
    return digest(
        {
            "shards": sorted([shard.id, sorted(shard.tombstoned)] for shard in shards),
            "input": source.model_dump(mode="json", include=set(ASKED)),
            "split": shares,
            "splits": sorted(splits),
        }
    )


def read_look(store: Storage, dataset: str, test_set: str, judged: str) -> Document | None:
    """Return what a version (`name@version`) left of its look at a test set, None when it has not looked."""
    return find_document(store, layout.look(dataset, test_set, judged))


def record_look(store: Storage, dataset: str, test_set: str, judged: str, look: Document) -> None:
    """Record a look; one that another run has recorded meanwhile stays."""
    with suppress(AlreadyExistsError):
        store.create(layout.look(dataset, test_set, judged), encode(look))


def count_looks(store: Storage, dataset: str, test_set: str) -> int:
    """Return how many versions have looked at a test set."""
    return sum(entry.path.endswith(".json") for entry in store.list(layout.looks(dataset, test_set)))


def luck_of_best(looks: int, share: float, num_images: int) -> float:
    """Return by how much the best of so many equally good models seems better than it is, as a share.

    Notes
    -----
    The expected largest of k normal draws is about Phi^-1((k - 0.375) / (k + 0.25)) standard deviations above their mean
    (G. Blom, "Statistical estimates and transformed beta-variables", 1958); that of a share p is sqrt(p (1 - p) / N).
    """
    spread = math.sqrt(share * (1 - share) / num_images)
    return NormalDist().inv_cdf((looks - 0.375) / (looks + 0.25)) * spread
