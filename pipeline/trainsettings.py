"""The section `train` of a config document: how the model is trained, and on how many workers."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section


class Workers(Section):
    """How many workers: `2`, or `{min: 1, max: 4}` for as many as there is room for whenever training (re)starts."""

    min: int = Field(1, gt=0)
    max: int = Field(1, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _one_number_is_both(cls, value: Any) -> Any:
        return value if isinstance(value, dict | Workers) else {"min": value, "max": value}

    @model_validator(mode="after")
    def _min_is_at_most_max(self) -> "Workers":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) must be at most max ({self.max})")
        return self

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min} to {self.max}"

    def choose(self, lanes: int, room: int) -> int | None:
        """Return the largest number that divides the lanes, within `min` and `max` and the room; None if there is none."""
        fitting = (n for n in range(min(self.max, room), self.min - 1, -1) if lanes % n == 0)
        return next(fitting, None)


class TrainSettings(Section):
    """How the model is trained."""

    mode: Literal["none", "head", "finetune", "scratch"] = "none"
    epochs: int = Field(10, gt=0)
    batch_size: int = Field(64, gt=0, description="global: all workers together")
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    cache_features: bool = Field(True, description="mode head: run the backbone once, not every epoch")
    lanes: int = Field(8, gt=0, description="fixed streams of examples; workers must divide it")
    # Eight lanes of 512 examples touch at most 24 shards of 256 images, which the cache holds at 224 pixels.
    shuffle_window: int = Field(512, gt=0, description="examples that shuffling mixes at a time, per lane")
    cache_mb: int = Field(1024, gt=0, description="memory per worker for decoded shards")
    workers: Workers = Field(Workers(), description="a number, or {min: 1, max: 4}: as many as there is room for")
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(2, ge=0, description="deaths and stalls of workers that one run survives")
    checkpoint_minutes: float = Field(2, gt=0, description="what a killed training loses at most")
    checkpoint_steps: int | None = Field(None, gt=0, description="instead of minutes: after every so many steps")
    keep_checkpoints: int = Field(2, gt=0)
    stall_s: float = Field(300, gt=0, description="no step for so long: say which worker, and start the workers again")
    sanity: bool = Field(True, description="before the first step: first loss = ln K, 20 images learnt by heart")

    @model_validator(mode="after")
    def _workers_divide_lanes(self) -> "TrainSettings":
        if self.workers.choose(self.lanes, self.workers.max) is None:
            divisors = [str(n) for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise ValueError(f"workers ({self.workers}) must divide lanes ({self.lanes}), as {', '.join(divisors)} do")
        if self.batch_size < self.workers.max:
            raise ValueError(
                f"batch_size ({self.batch_size}) is global and must be at least workers ({self.workers.max})"
            )
        return self
