"""Examples: what training knows of each readable image of a plan - where it is, its label, its side of the split.

One table per shard in the store, made once by a cluster job. For a frozen backbone it also holds the features. Only rows
to learn from and to validate on leave it as examples, and readers of inputs take an `Examples` and read what it names: no
training can look at a test image.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import layout
from pipeline.documents import digest
from pipeline.lanes import Indices
from pipeline.settings import InputSettings, ModelSettings, SplitSettings
from pipeline.shards import Shard
from pipeline.splits import leaked, split_of
from pipeline.storage import Storage
from pipeline.tables import read_table
from pipeline.truths import Label, LabelSet, names_in

Learned = Literal["train", "val"]  # the splits that training may look at
LEARNED: tuple[Learned, ...] = ("train", "val")

# Raise when the code computes other features or other columns: cached tables of old code are then never read.
EXAMPLES_VERSION = 1


def examples_schema(feature_size: int, multi_label: bool = False) -> pa.Schema:
    """Return the schema of an example table; without a backbone `feature_size` is 0 and there is no such column."""
    columns = [
        ("uri", pa.string()), ("segment", pa.string()), ("position", pa.int64()), ("content_hash", pa.string()),
        ("label", pa.string()), ("split", pa.string()), ("group", pa.string()),
    ]  # fmt: skip
    if multi_label:
        columns += [("labels", pa.list_(pa.string())), ("absent", pa.list_(pa.string()))]
    features = [("features", pa.list_(pa.float32(), feature_size))] if feature_size else []
    return pa.schema(columns + features, metadata={"nightshift.schema": f"examples/{EXAMPLES_VERSION}"})


def fingerprint(source: InputSettings, model: ModelSettings, weights_sha256: str | None, libraries: str) -> str:
    """Return the name of the tables that these settings share; `weights_sha256` is None without a backbone."""
    asked: dict[str, Any] = {
        "version": EXAMPLES_VERSION,
        "max_pixels": source.max_pixels,
        "images": [source.image_column, source.uri_column, source.allowed_prefixes],
        "columns": [source.label_column, source.split_column, source.group_column],
    }
    if source.labels_column:
        asked["labels"] = [source.labels_column, source.absent_column, source.labels_separator]
    if source.filter:
        asked["filter"] = source.model_dump(mode="json")["filter"]
    if weights_sha256 is not None:
        backbone = [model.builder, model.arguments, model.transforms.model_dump(), weights_sha256, libraries]
        asked["backbone"] = backbone
        if source.size_px:
            asked["size_px"] = source.size_px
    return digest(asked)


@dataclass(frozen=True)
class Examples:
    """N examples of the splits `train` and `val`, in plan order. `slots` is an example's row in its shard's table, live rows only.

    Of all splits there is no more than `label_counts`: how many images of each have which label.
    """

    shards: tuple[Shard, ...]
    shard_numbers: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    hashes: list[str]
    labels: list[Label]
    splits: list[str]
    leaked: int
    without_label: int
    unreadable: int
    label_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)  # those of one group never part; without groups: the content's hash

    @cached_property
    def kept(self) -> dict[str, Indices]:
        """The slots of each shard's examples, by its id: all that training reads of it."""
        return {shard.id: self.slots[self.shard_numbers == number] for number, shard in enumerate(self.shards)}

    def of(self, split: Learned) -> Indices:
        """Return the examples of one split that have a label."""
        chosen = [
            i
            for i, (s, label) in enumerate(zip(self.splits, self.labels, strict=True))
            if s == split and label is not None
        ]
        return np.array(chosen, np.int64)

    def by_shard(self, indices: Indices) -> list[Indices]:
        """Group examples by their shard, in plan order; shards without any are left out."""
        numbers = self.shard_numbers[indices]
        return [indices[numbers == number] for number in np.unique(numbers)]


def load_examples(
    store: Storage, dataset: str, name: str, shards: Sequence[Shard], settings: SplitSettings, multi_label: bool = False
) -> Examples:
    """Read the tables of all shards and assign splits. The labels are sets where the tables hold those (`multi_label`).

    Notes
    -----
    The split is the input's where it has one, else a hash of the group or the content. Training rows whose exact bytes
    are also judged on are dropped (split `leaked`).
    """
    columns = ("segment", "content_hash", "split", "group", *(("labels", "absent") if multi_label else ("label",)))
    tables = [read_examples(store, dataset, name, shard, columns) for shard in shards]
    merged = pa.concat_tables(tables) if tables else examples_schema(0, multi_label).empty_table()
    hashes = merged["content_hash"].to_pylist()
    labels = _label_sets(merged) if multi_label else merged["label"].to_pylist()
    groups = [group or content for group, content in zip(merged["group"].to_pylist(), hashes, strict=True)]
    splits = [given or split_of(key, settings) for given, key in zip(merged["split"].to_pylist(), groups, strict=True)]
    twins = leaked(hashes, splits)
    for i in twins:
        splits[i] = "leaked"
    sizes = [table.num_rows for table in tables]
    numbers = np.repeat(np.arange(len(tables)), sizes)
    slots = np.concatenate([np.arange(size) for size in sizes]) if sizes else np.empty(0, np.int64)
    chosen = [i for i, split in enumerate(splits) if split in LEARNED]
    return Examples(
        tuple(shards), numbers[chosen], slots[chosen],
        [hashes[i] for i in chosen], [labels[i] for i in chosen], [splits[i] for i in chosen],
        len(twins), Counter(labels)[None], sum(shard.num_images for shard in shards) - merged.num_rows,
        _label_counts(splits, labels), [groups[i] for i in chosen],
    )  # fmt: skip


def _label_counts(splits: Sequence[str], labels: Sequence[Label]) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    for split, label in zip(splits, labels, strict=True):
        counts[split].update(names_in(label))
    return counts


def _label_sets(table: pa.Table) -> list[Label]:
    pairs = zip(table["labels"].to_pylist(), table["absent"].to_pylist(), strict=True)
    return [
        None if there is None else LabelSet(tuple(there), None if absent is None else tuple(absent))
        for there, absent in pairs
    ]


def read_examples(store: Storage, dataset: str, name: str, shard: Shard, columns: Sequence[str]) -> pa.Table:
    """Read a shard's table without the rows of tombstoned segments; `columns` include `segment`."""
    table = read_table(store, layout.features(dataset, name, shard.id), columns)
    if not shard.tombstoned:
        return table
    return table.filter(pc.is_in(table["segment"], value_set=pa.array([segment.key for segment in shard.live])))
