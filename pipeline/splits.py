"""Who trains and who judges: a stable hash of content or group, so that no image ever changes sides."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pipeline.settings import SplitSettings

SPLITS = ("train", "val", "test")
NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


def split_name(name: str) -> str:
    """Return our word for a split: data sets call `val` validation, valid or dev; other names stay as they are."""
    return NAMES.get(name.lower(), name)


def split_of(key: str, settings: SplitSettings) -> str:
    """Return `train`, `val` or `test` for a group name or content hash.

    Notes
    -----
    u = the first 64 bits of SHA-256(key) / 2^64 is uniform in [0, 1): test below `test`, val below `test + val`.
    Moving or renaming files changes nothing; a growing `test` share takes from val and train without a swap back.
    """
    u = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if u < settings.test:
        return "test"
    return "val" if u < settings.test + settings.val else "train"


def leaked(content_hashes: Sequence[str], splits: Sequence[str]) -> list[int]:
    """Return the positions of training rows whose exact bytes also stand in another split."""
    judged = {h for h, split in zip(content_hashes, splits, strict=True) if split != "train"}
    return [
        i for i, (h, split) in enumerate(zip(content_hashes, splits, strict=True)) if split == "train" and h in judged
    ]


def missing(classes: Iterable[str], label_counts: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    """Return, per split that has rows with labels, the classes without an example in it."""
    wanted = set(classes)
    return {split: absent for split, seen in label_counts.items() if seen and (absent := sorted(wanted - seen.keys()))}
