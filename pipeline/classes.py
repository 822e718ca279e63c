"""The classes of a model. A class is its index; names need not be unique (ImageNet has two cranes), ids are."""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import InputError, ModelError


@dataclass(frozen=True)
class Classes:
    """K classes in index order: a name for people and an id that labels in a data set may use instead."""

    names: tuple[str, ...]
    ids: tuple[str, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        counts: dict[str, int] = {}
        for name in self.names:
            counts[name] = counts.get(name, 0) + 1
        index = {name: i for i, name in enumerate(self.names) if counts[name] == 1}
        object.__setattr__(self, "_index", index | {key: i for i, key in enumerate(self.ids)})

    def __len__(self) -> int:
        return len(self.names)

    def index_of(self, label: str | None) -> int | None:
        """Return the class that a label means by id or by unique name, None when the model does not know it."""
        return None if label is None else self._index.get(label)

    def to_json(self) -> list[dict[str, str]]:
        """Return one object per class."""
        return [{"id": key, "name": name} for key, name in zip(self.ids, self.names, strict=True)]


def classes_from_labels(labels: Iterable[str], fewest: int = 2) -> Classes:
    """Return the distinct labels, sorted, as classes.

    Raises
    ------
    InputError
        When there are fewer than `fewest`, or when two of them differ only in case or blanks.
    """
    names = sorted(set(labels))
    cleaned: dict[str, str] = {}
    for name in names:
        other = cleaned.setdefault(clean(name), name)
        if other != name:
            raise InputError(
                f"the labels {other!r} and {name!r} differ only in case, blanks or Unicode form; "
                "rename one of them: as two classes no model could tell them apart"
            )
    if len(names) < fewest:
        found = f"only {names[0]!r}" if names else "no label at all"
        needed = "two classes" if fewest > 1 else "one class"
        raise InputError(
            f"training needs at least {needed}, and its rows hold {found}; check input.label_column (or labels_column) and the "
            "split"
        )
    return Classes(tuple(names), tuple(names))


def clean(name: str) -> str:
    """Return the form in which two names count as one."""
    return " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").casefold().split())


def parse_classes(data: bytes, location: str) -> Classes:
    """Read a JSON list: names, or objects with `name` and optionally `id` or `wnid`, `index`."""
    try:
        items = json.loads(data)
    except ValueError as error:
        raise ModelError(f"{location} is not JSON ({error}); expected a list of class names") from error
    if not isinstance(items, list) or not items:
        raise ModelError(f"{location} holds no list; expected a JSON list of class names or of objects with a name")
    pairs = [_pair(item, position, location) for position, item in enumerate(items)]
    names, ids = zip(*pairs, strict=True)
    if len(set(ids)) < len(ids):  # names alone may repeat: then the index is the id
        ids = tuple(str(i) for i in range(len(names)))
    return Classes(names, ids)


def _pair(item: Any, position: int, location: str) -> tuple[str, str]:
    if isinstance(item, str):
        return item, item
    if not isinstance(item, dict) or item.get("name") is None:
        raise ModelError(f"{location}: entry {position} is {item!r}; expected a name, or an object with the key name")
    if item.get("index", position) != position:
        raise ModelError(f"{location}: entry {position} says index {item['index']}; expected the list in index order")
    key = next(item[k] for k in ("id", "wnid", "name") if item.get(k) is not None)  # an id may be 0
    return str(item["name"]), str(key)
