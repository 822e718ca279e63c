"""What a worker must know besides its shard: small documents that mean the same in every process and need no torch."""

from dataclasses import dataclass

from pipeline.layout import Generation
from pipeline.settings import (
    InputSettings,
    LabelSettings,
    ModelSettings,
    SplitSettings,
    StorageSettings,
)
from pipeline.shards import Shard
from pipeline.trainsettings import TrainSettings


@dataclass(frozen=True)
class LabelTask:
    """Label shards with `generation.model` at `version`. `threads` decode while one predicts."""

    store: str
    storage: StorageSettings
    input: InputSettings
    label: LabelSettings
    generation: Generation
    version: str
    run_id: str
    threads: int = 1
    builder: str = ""  # that of the config: code of the user's own is run only when it is named there


@dataclass(frozen=True)
class ExamplesTask:
    """Make the example tables called `name`; `backbone` says whether they hold features of `model`.

    `train` is what they are made for: a network that could not be trained so is refused before an image is read.
    """

    store: str
    storage: StorageSettings
    input: InputSettings
    dataset: str
    model: ModelSettings
    train: TrainSettings
    name: str
    backbone: bool
    batch_size: int = 64
    threads: int = 1


@dataclass(frozen=True)
class TrainTask:
    """Train `model` as `train` says on the examples called `examples`, as the training called `run_key`."""

    store: str
    storage: StorageSettings
    input: InputSettings
    split: SplitSettings
    model: ModelSettings
    train: TrainSettings
    seed: int
    dataset: str
    shards: tuple[Shard, ...]
    examples: str
    classes: tuple[str, ...]
    run_key: str
    started_at: str
    fold: int | None = None  # of `train.folds`: held out instead of the validation images

    @property
    def cached(self) -> bool:
        """Whether training reads features instead of images."""
        return self.train.mode == "head" and self.train.cache_features


@dataclass(frozen=True)
class ProbeTask:
    """Ask the model of a label task about spoilt pictures: some images of some splits, `input` with what is known of them."""

    label: LabelTask
    input: InputSettings
    split: SplitSettings
    splits: tuple[str, ...]
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    images_per_shard: int


@dataclass(frozen=True)
class EvaluateTask:
    """Judge a bundle on the rows of some splits."""

    store: str
    storage: StorageSettings
    input: InputSettings
    split: SplitSettings
    label: LabelSettings
    model: str
    version: str
    splits: tuple[str, ...]
    threads: int = 1
    builder: str = ""  # as in LabelTask
    slices: tuple[str, ...] = ()
