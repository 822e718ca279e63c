"""The section `tune` of a config document: which values of `train` are tried, how they are chosen, and by what they are judged."""

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.section import Section
from pipeline.trainsettings import TrainSettings

Scalar = str | int | float | bool | None
# What decides which training it is, or how it is run: not a matter of better values.
FIXED = {
    "preset", "mode", "folds", "epochs", "cache_features", "freeze", "early_stopping", "workers", "cpus_per_worker",
    "gpus_per_worker", "memory_mb_per_worker", "node_labels", "max_failures", "cache_mb", "stall_s", "sanity",
    "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints",
}  # fmt: skip
BORDER = 0.05  # of a range: a best value so near to its end may be better beyond


class Range(Section):
    """All numbers from `min` to `max`: `{min: 0.0001, max: 0.1, log: true}`."""

    min: float
    max: float
    log: bool = Field(False, description="every decade alike")
    whole: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _min_is_below_max(self) -> "Range":
        if not self.min < self.max:
            raise ValueError(f"min ({self.min:g}) must be below max ({self.max:g})")
        if self.log and self.min <= 0:
            raise ValueError(f"log: true needs a min above 0 (it is {self.min:g})")
        if self.whole and (self.min % 1 or self.max % 1):
            raise ValueError(f"whole: true needs whole numbers as min ({self.min:g}) and max ({self.max:g})")
        return self

    @property
    def examples(self) -> tuple[float, ...]:
        """Numbers of the kind that is tried: both ends, and one that is not whole where any number may come."""
        return self.ends if self.whole else (*self.ends, self.min + (self.max - self.min) / math.pi)

    @property
    def ends(self) -> tuple[float, float]:
        """Its two ends, as numbers of the kind that is tried."""
        return (int(self.min), int(self.max)) if self.whole else (self.min, self.max)

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 at `min` to 1 at `max`."""
        low, high, at = (math.log(v) if self.log else v for v in (self.min, self.max, value))
        return (at - low) / (high - low)


Domain = Range | tuple[Scalar, ...]


class TuneSettings(Section):
    """Trials of other values of `train`, judged on validation images."""

    space: dict[str, Domain] = Field({}, description="train.KEY: a list of values, or {min, max, log, whole}")
    trials: int = Field(20, gt=0)
    search: Literal["random", "optuna"] = Field("random", description="optuna: values that did well draw others (TPE)")
    scheduler: Literal["none", "asha"] = Field("asha", description="asha: trials that fall behind are stopped early")
    grace_epochs: int = Field(1, gt=0, description="asha: no trial is stopped before")
    metric: Literal["loss", "top1", "map"] = Field("loss", description="on validation images")

    @field_validator("space")
    @classmethod
    def _values_are_of_train(cls, space: dict[str, Domain]) -> dict[str, Domain]:
        for key, domain in space.items():
            section, _, name = key.partition(".")
            if section != "train" or name.split(".")[0] not in TrainSettings.model_fields:
                raise ValueError(f"{key}: expected a key of train, such as train.learning_rate")
            if name.split(".")[0] in FIXED:
                raise ValueError(f"{key} says which training it is, or how it is run, and cannot be tuned")
            if domain == ():
                raise ValueError(f"{key}: give values to choose from")
        return {key: d if isinstance(d, Range) else tuple(map(_number, d)) for key, d in space.items()}


def _number(value: Scalar) -> Scalar:
    """Return text that is a number as one: to YAML 1e-3 is text, 1.0e-3 a number."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def with_values(settings: TrainSettings, values: dict[str, Any]) -> TrainSettings:
    """Return the settings with these values of `train.KEY`; ValueError (pydantic's ValidationError is one) when they do not fit."""
    return TrainSettings.model_validate(replaced(settings.model_dump(), values))


def replaced(document: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Put values of `train.KEY` into a document of the section, and return it; ValueError when it has no such part."""
    for key, value in values.items():
        *sections, last = key.split(".")[1:]
        section: Any = document
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
            if not isinstance(section, dict):
                raise ValueError(f"{key}: train has no section {'.'.join(sections)}")
        section[last] = value
    return document


def on_the_border(space: dict[str, Domain], values: dict[str, Any]) -> dict[str, str]:
    """Return, for each of the values that lies at an end of what was tried, which end: there may be better ones beyond."""
    found = {}
    for key, domain in space.items():
        value = values[key]
        if isinstance(domain, Range):
            place = domain.place(value)
        else:
            numbers = sorted({v for v in domain if isinstance(v, int | float) and not isinstance(v, bool)})
            if len(numbers) < 3 or value not in numbers:
                continue
            place = numbers.index(value) / (len(numbers) - 1)
        if place <= BORDER or place >= 1 - BORDER:
            found[key] = "lower" if place <= BORDER else "upper"
    return found
