"""Cross-validation: every example is held out in exactly one of k folds, with its whole group, and classes spread evenly."""

from collections import Counter, defaultdict

import numpy as np
import numpy.typing as npt

from pipeline.documents import digest
from pipeline.errors import InputError
from pipeline.examples import LEARNED, Examples
from pipeline.lanes import Indices
from pipeline.truths import names_in


def fold_numbers(examples: Examples, num_folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold in which each example is held out, -1 for those without a label.

    Notes
    -----
    Groups are dealt out one by one, those with the rarest labels first and large ones before small ones, each to the fold that
    has the smallest share of its labels; of equals, to the smallest fold. It is the greedy stratification of K. Sechidis et
    al., "On the stratification of multi-label data", ECML PKDD 2011, on groups instead of images.

    Raises
    ------
    InputError
        When there are fewer groups than folds.
    """
    together = _together(examples)
    members: dict[str, list[int]] = defaultdict(list)
    for split in LEARNED:
        for i in examples.of(split):
            members[together[examples.groups[i]]].append(int(i))
    if len(members) < num_folds:
        raise InputError(
            f"{len(members)} groups of labelled images cannot be held out in {num_folds} folds (train.folds); give fewer folds, or "
            "more images"
        )
    labels = {group: Counter(n for i in rows for n in names_in(examples.labels[i])) for group, rows in members.items()}
    totals = sum(labels.values(), Counter[str]())

    def urgency(group: str) -> tuple[int, int, str]:
        rarest = min((totals[name] for name in labels[group]), default=len(examples.labels))
        return rarest, -len(members[group]), digest([seed, group])

    held: list[Counter[str]] = [Counter() for _ in range(num_folds)]
    sizes = [0] * num_folds
    numbers = np.full(len(examples.labels), -1, np.int64)
    for group in sorted(members, key=urgency):
        shares = [sum(fold[name] / totals[name] for name in labels[group]) for fold in held]
        chosen = min(range(num_folds), key=lambda fold: (shares[fold], sizes[fold], fold))
        numbers[members[group]] = chosen
        held[chosen].update(labels[group])
        sizes[chosen] += len(members[group])
    return numbers


def _together(examples: Examples) -> dict[str, str]:
    """Return for each group the one that stands for all groups that share an image with it, byte for byte."""
    standing = {group: group for group in examples.groups}
    seen: dict[str, str] = {}

    def first(group: str) -> str:
        while standing[group] != group:
            standing[group] = group = standing[standing[group]]
        return group

    for content, group in zip(examples.hashes, examples.groups, strict=True):
        standing[first(group)] = first(seen.setdefault(content, group))
    return {group: first(group) for group in standing}


def fold_of(examples: Examples, num_folds: int, fold: int, seed: int) -> tuple[Indices, Indices]:
    """Return the examples to learn from and those held out in one fold."""
    numbers = fold_numbers(examples, num_folds, seed)
    return np.flatnonzero((numbers >= 0) & (numbers != fold)), np.flatnonzero(numbers == fold)
