"""The section `train` of a config document: how the model is trained, and on how many workers."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.augmentsettings import AugmentSettings
from pipeline.presets import with_preset
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

    preset: str | None = Field(None, description="lab, transfer, finetune or imagenet: values for what is left out")
    mode: Literal["none", "head", "finetune", "scratch"] = "none"
    epochs: int = Field(10, gt=0)
    batch_size: int = Field(64, gt=0, description="global: all workers together")
    accumulate: int = Field(1, gt=0, description="pieces that a worker computes its share in, to need less memory")
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = Field("adam", description="sgd is Nesterov's")
    learning_rate: float = Field(1e-3, gt=0, description="at its highest")
    learning_rate_batch: int | None = Field(None, gt=0, description="batch that it is meant for: another scales it")
    body_learning_rate: float | None = Field(None, gt=0, description="mode finetune: of all but the head")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and rmsprop")
    weight_decay: float = Field(0.0, ge=0, description="of weights; biases and normalisations do not decay")
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    warmup_epochs: float = Field(0.0, ge=0, description="the rate rises so long (one_cycle: 0 means 30 %)")
    clip_norm: float | None = Field(None, gt=0, description="longest gradient, over all parameters")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    average: float | None = Field(
        None, gt=0, lt=1, description="decay of the weights' running average, which is sealed"
    )
    early_stopping: int | None = Field(None, gt=0, description="epochs without a lower validation loss; seals the best")
    folds: int | None = Field(
        None, ge=2, description="first cross-validate: so many trainings, each on all but its fold"
    )
    balance: Literal["none", "sampling", "loss"] = Field(
        "none", description="rare classes: learnt more often, or weigh more"
    )
    augment: AugmentSettings = AugmentSettings()
    freeze: tuple[str, ...] = Field((), description="parts that stay as they are: features.0, layer1")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: autocast, for processors and GPUs that have it"
    )
    channels_last: bool = Field(False, description="pixels before channels in memory: quicker convolutions in bf16")
    compile: bool = Field(False, description="torch.compile: minutes at the start, faster steps on GPUs")
    cache_features: bool = Field(True, description="mode head: run the backbone once, not every epoch")
    lanes: int = Field(8, gt=0, description="fixed streams of examples; workers must divide it")
    # Eight lanes of 512 examples touch at most 24 shards of 256 images, which the cache holds at 224 pixels.
    shuffle_window: int = Field(512, gt=0, description="examples that shuffling mixes at a time, per lane")
    cache_mb: int = Field(
        1024, gt=0, description="memory per worker for decoded shards, and as much for augmented ones"
    )
    workers: Workers = Field(Workers(), description="a number, or {min: 1, max: 4}: as many as there is room for")
    cpus_per_worker: int = Field(1, gt=0, description="they read and decode too: several for a GPU")
    gpus_per_worker: float = Field(0, ge=0)
    memory_mb_per_worker: int | None = Field(None, gt=0, description="memory that Ray keeps free for a worker")
    node_labels: dict[str, str] = Field({}, description="Ray labels of the nodes that train: {ray.io/node-group: gpu}")
    max_failures: int = Field(2, ge=0, description="deaths and stalls of workers that one run survives")
    checkpoint_minutes: float = Field(2, gt=0, description="what a killed training loses at most")
    checkpoint_steps: int | None = Field(None, gt=0, description="instead of minutes: after every so many steps")
    keep_checkpoints: int = Field(2, gt=0)
    stall_s: float = Field(300, gt=0, description="no step for so long: say which worker, and start the workers again")
    sanity: bool = Field(True, description="before the first step: first loss = ln K, 20 images learnt by heart")

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, value: Any) -> Any:
        return with_preset(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _parts_are_there(self) -> "TrainSettings":
        if self.body_learning_rate is not None and self.mode != "finetune":
            raise ValueError(
                f"body_learning_rate is for mode finetune (mode is {self.mode}): elsewhere all learns alike"
            )
        if self.freeze and self.mode not in ("finetune", "scratch"):
            raise ValueError(f"freeze is for the modes finetune and scratch (mode is {self.mode})")
        augmented = self.augment.changes_pictures or self.augment.mixes
        if augmented and self.mode == "head" and self.cache_features:
            raise ValueError(
                "augment changes pictures, and mode head learns from cached features: set cache_features: false"
            )
        return self

    def fewest_images(self, batch_size: int, workers: int) -> int:
        """Return the fewest images that go through the network at once in training, 0 where it only answers."""
        return 0 if self.mode == "head" else max(1, batch_size // workers // self.accumulate)

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
