"""A config document: one YAML file, then `--set section.key=value`, validated; relative paths made absolute."""

import datetime
import os
import posixpath
import re
from collections.abc import Hashable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.checksettings import CheckSettings, NotifySettings
from pipeline.errors import ConfigError
from pipeline.judgesettings import EvaluateSettings, PromoteSettings, RobustnessSettings
from pipeline.kubesettings import KubernetesSettings
from pipeline.refusals import printable
from pipeline.schema import JUDGED_COLUMNS, OWN_COLUMNS
from pipeline.section import Section
from pipeline.settings import (
    ClusterSettings,
    InputSettings,
    LabelSettings,
    ModelSettings,
    OutputSettings,
    SplitSettings,
    StorageSettings,
)
from pipeline.sources import dataset_name
from pipeline.storage import OBJECT_SCHEMES, Storage, absolute_url, open_storage, scheme_of
from pipeline.trainsettings import TrainSettings
from pipeline.tunesettings import Range, TuneSettings, with_values
from pipeline.weightsource import Location, weight_source

PATHS = (("store",), ("input", "url"), ("model", "weights"), ("model", "classes"))


class Config(Section):
    """The whole document. Functions are given the section that they need, never this."""

    store: str = Field(description="folder or URL that everything is written to")
    input: InputSettings
    storage: StorageSettings = StorageSettings()
    split: SplitSettings = SplitSettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    tune: TuneSettings = TuneSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    promote: PromoteSettings = PromoteSettings()
    robustness: RobustnessSettings = RobustnessSettings()
    label: LabelSettings = LabelSettings()
    checks: CheckSettings = CheckSettings()
    notify: NotifySettings = NotifySettings()
    output: OutputSettings = OutputSettings()
    cluster: ClusterSettings = ClusterSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    seed: int = 0
    date: datetime.date | None = Field(None, description="logical date of the run (--date), ${date} in every string")

    @field_validator("date", mode="before")
    @classmethod
    def _date_is_spelled_out(cls, value: Any) -> Any:
        if value is None or isinstance(value, datetime.date):
            return value
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            return datetime.date.fromisoformat(value)
        raise ValueError("expected a date as YYYY-MM-DD")  # pydantic would take numbers for seconds since 1970

    @model_validator(mode="after")
    def _columns_are_not_ours(self) -> "Config":
        """Refuse columns that could not stand beside ours in a label file."""
        columns = self.label.columns
        for name in columns:
            if name in OWN_COLUMNS:
                raise ValueError(
                    f"label.columns: labels have a column {name!r} of their own; rename it in the input, or leave it out"
                )
            if columns.count(name) > 1:
                raise ValueError(f"label.columns: {name!r} stands twice; remove one")
        return self

    @model_validator(mode="after")
    def _slices_are_not_ours(self) -> "Config":
        if own := [name for name in self.evaluate.slices if name in JUDGED_COLUMNS]:
            raise ValueError(
                f"evaluate.slices: evaluations have a column {own[0]!r} of their own; rename it in the input, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _one_size(self) -> "Config":
        if self.input.size_px is not None and self.model.transforms.crop_px is not None:
            raise ValueError(
                "input.size_px and model.transforms.crop_px both say how large the model's input is; give one of them "
                "(size_px also scales what is resized to)"
            )
        return self

    @model_validator(mode="after")
    def _training_fits_thresholds(self) -> "Config":
        if self.model.threshold is not None and self.train.mode != "none":
            raise ValueError(
                f"model.threshold is for weights that are adopted as they are, and train.mode is {self.train.mode}, which fits "
                "thresholds on validation images; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _every_value_can_be_tried(self) -> "Config":
        for key, domain in self.tune.space.items():
            for value in domain.examples if isinstance(domain, Range) else domain:
                try:
                    balance = with_values(self.train, {key: value}).balance
                except ValidationError as error:
                    said = error.errors()[0]["msg"].removeprefix("Value error, ")
                    whole = "; whole: true draws whole numbers only" if "integer" in said else ""
                    raise ValueError(f"tune.space: {key} cannot be {value!r}: {said}{whole}") from error
                if balance != "none" and self.input.multi_label:
                    raise ValueError(f"tune.space: {key} cannot be {value!r}: input.labels_column is given")
        return self

    @model_validator(mode="after")
    def _one_label_to_balance(self) -> "Config":
        if self.train.balance != "none" and self.input.multi_label:
            raise ValueError(
                f"train.balance: {self.train.balance} is for images with one label each, and input.labels_column is given; leave it "
                "out: each class gets a threshold of its own"
            )
        return self

    @property
    def dataset(self) -> str:
        """Name of the data set in the store."""
        return dataset_name(self.input)

    def open_store(self) -> Storage:
        """Open the store; nothing is contacted yet."""
        return open_storage(self.store, self.storage)


def read_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a config file.

    Parameters
    ----------
    overrides : Sequence[str]
        `section.key=value` each, the value in YAML; later ones win.

    Raises
    ------
    ConfigError
        With the file and the key in every line of the message.
    """
    document = _parse(path)
    for override in overrides:
        _apply(document, override)
    present = {key: value for key, value in document.items() if value is not None}  # a section may stand empty
    if "${date}" in str(present) and "date" not in present:
        present["date"] = datetime.datetime.now().astimezone().date()  # where the scheduler gives none: today, here
    names = os.environ | ({"date": str(present["date"])} if "date" in present else {})
    try:
        config = Config.model_validate(_expand(present, path, names))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(path, problem) for problem in error.errors())) from error
    return _absolute(config, path)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; PyYAML lets the last one win without a word.

    And in which 22:30 is text, as in YAML 1.2: PyYAML reads it to the base of 60, as the number 1350.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse repeated keys, then build the mapping."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} stands twice; remove one", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> Any:
        """Return a number; text when it is a time of day."""
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_UniqueKeys.add_constructor("tag:yaml.org,2002:int", _UniqueKeys.construct_yaml_int)
_UniqueKeys.add_constructor("tag:yaml.org,2002:value", lambda loader, node: str(node.value))  # a bare =


def _quotes(text: str) -> str:
    """Return what a filter that is no YAML most likely lacks."""
    return "; operators stand in quotes: [[price, '>', 3]]" if "filter" in text else ""


def _parse(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); give the path of a YAML config, such as configs/local.yaml"
        ) from error
    try:
        document = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-13-45
        raise ConfigError(f"{path}: not valid YAML: {error}{_quotes(text)}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(Config.model_fields)}")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected section.key=value, such as label.top_k=3")
    *sections, last = key.strip().split(".")
    for section in sections:
        if document.get(section) is None:
            document[section] = {}
        document = document[section]
        if not isinstance(document, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    try:
        document[last] = yaml.load(value, _UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML ({error}){_quotes(override)}") from error


def _expand(value: Any, path: str, names: Mapping[str, str], keys: tuple[str, ...] = ()) -> Any:
    """Replace ${NAME} by the environment variable, and ${date} by the run's logical date, in every string."""
    if isinstance(value, dict):
        return {key: _expand(item, path, names, (*keys, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, path, names, (*keys, str(i))) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\$\{(\w+)\}", value):
        if name not in names:
            raise ConfigError(
                f"{path}: {'.'.join(keys)}: ${{{name}}} is used, but the environment has no variable {name}; "
                "export it first"
            )
    return re.sub(r"\$\{(\w+)\}", lambda match: names[match[1]], value)


def _explain(path: str, problem: Any) -> str:
    """Say one validation problem with file and key, and for an unknown key the nearest known one."""
    keys = [str(part) for part in problem["loc"]]
    name = ".".join(keys) or "the document"
    if problem["type"] == "extra_forbidden":
        section = _section(keys[:-1])
        known = list(section.model_fields) if section else []
        near = get_close_matches(keys[-1], known, 1)
        hint = f"did you mean {'.'.join([*keys[:-1], near[0]])}?" if near else f"known here: {', '.join(known)}"
        return f"{path}: {name}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{path}: {name}: is required"
    message = problem["msg"].removeprefix("Value error, ")
    shown = problem["input"]
    return f"{path}: {name}: {message}" + (f" (it is {shown!r})" if isinstance(shown, str | int | float | bool) else "")


def _section(keys: list[str]) -> type[Section] | None:
    section: Any = Config
    for key in keys:
        field = section.model_fields.get(key)
        section = field.annotation if field else None
        if not (isinstance(section, type) and issubclass(section, Section)):
            return None
    return section if isinstance(section, type) else None


def _absolute(config: Config, path: str) -> Config:
    """Make every path that the config names absolute, before another process sees it; refuse what it could not reach."""
    document = config.model_dump()
    for *sections, key in PATHS:
        section = document
        for name in sections:
            section = section[name]
        if section[key] is not None and (key != "weights" or isinstance(weight_source(section[key]), Location)):
            _check_scheme(section[key], f"{path}: {'.'.join([*sections, key])}")
            section[key] = absolute_url(section[key])
    prefixes = document["input"]["allowed_prefixes"]
    document["input"]["allowed_prefixes"] = tuple(absolute_url(prefix) for prefix in prefixes)
    absolute = Config.model_validate(document)
    _check_apart(absolute, path)
    return absolute


def _check_apart(config: Config, path: str) -> None:
    """Refuse a store inside the input, whose label files would be taken for images to label, and an input without a name."""
    store, source = (posixpath.normpath(url) for url in (config.store, config.input.url))
    if f"{store}/".startswith(f"{source.rstrip('/')}/"):
        raise ConfigError(
            f"{path}: store: {printable(config.store)} lies inside input.url ({printable(config.input.url)}), so the next "
            "plan would list what this one writes; move it beside the input"
        )
    if not re.fullmatch(r"[^./][^/]*", config.dataset):
        raise ConfigError(
            f"{path}: input.url: {printable(config.input.url)} ends in {config.dataset!r}, which is no name for a data set; set input.name"
        )


def _check_scheme(url: str, where: str) -> None:
    scheme = scheme_of(url)
    if scheme == "memory":
        raise ConfigError(
            f"{where}: memory:// is for single-process tests only, and workers are other processes (it is {printable(url)!r}); "
            "give a folder or a bucket"
        )
    if scheme not in (*OBJECT_SCHEMES, "file"):
        known = ", ".join(f"{name}://" for name in OBJECT_SCHEMES if name != "memory")
        raise ConfigError(
            f"{where}: unknown scheme {scheme}:// (it is {printable(url)!r}); expected a path or one of {known}"
        )
