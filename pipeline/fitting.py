"""One worker's whole part in a training: read the examples, build the network, train, and (rank 0) seal the bundle."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline import layout, zoo
from pipeline.augmentation import Augmenter
from pipeline.bundle import seal
from pipeline.checkpoints import Checkpoints
from pipeline.classes import Classes
from pipeline.documents import Document, encode
from pipeline.engine import normalize
from pipeline.errors import ModelError
from pipeline.examples import Examples, load_examples
from pipeline.heads import has_linear_head, head_of, last_layers, replace_head
from pipeline.loading import Inputs, Pictures, ShardCache, encoded_reader, feature_reader, pixel_reader
from pipeline.logits import Meaning
from pipeline.manifest import Architecture, Manifest
from pipeline.patience import best_epoch
from pipeline.pretrained import load_pretrained
from pipeline.processors import cpu_info, has_bf16, vector_flags
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.sizes import check_size
from pipeline.stepping import Trainee
from pipeline.storage import Storage, open_storage
from pipeline.tasks import TrainTask
from pipeline.temperature import fit_temperature
from pipeline.thresholds import DEFAULT, fit_thresholds
from pipeline.training import Course, train
from pipeline.trainsettings import TrainSettings
from pipeline.transforms import Transforms
from pipeline.truths import LabelMatrix
from pipeline.validation import final_answers

Wrap = Callable[[nn.Module], nn.Module]


class OnPixels(nn.Module):
    """A network that takes uint8 pixels [B, H, W, C]: normalising belongs to it."""

    def __init__(
        self, net: nn.Module, transforms: Transforms, layout: torch.memory_format = torch.contiguous_format
    ) -> None:
        super().__init__()
        self.net, self._transforms, self._layout = net.to(memory_format=layout), transforms, layout

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return logits [B, K]; in training, those of auxiliary classifiers too where the network has some."""
        return self.net(normalize(pixels, self._transforms).contiguous(memory_format=self._layout))


def fit(task: TrainTask, seat: Seat, wrap: Wrap, pulse: Pulse, threads: int = 1) -> Document | None:
    """Train and, on rank 0, seal the bundle and record the result, which is returned there.

    Parameters
    ----------
    wrap : Wrap
        Makes gradients average over the workers; the identity for one worker.
    """
    store = open_storage(task.store, task.storage)
    start = start_network(task, store)
    net, architecture = start.net, start.architecture
    trained, trainee = _trainee(task, net, architecture.transforms, seat, wrap)
    course = _course(task, store, start, threads)
    if not task.cached:
        fewest = task.train.fewest_images(min(task.train.batch_size, course.num_train), seat.world)
        check_size(architecture.builder, architecture.arguments, architecture.transforms, fewest)
    if not seat.rank and task.train.precision == "bf16" and not _has_bf16(seat):
        pulse.warn(
            "precision: this processor emulates bfloat16, which is slower than train.precision: fp32 and no more accurate"
        )
    checkpoints = Checkpoints(store, task.run_key, task.train.keep_checkpoints)
    history = train(trainee, course, seat, checkpoints, pulse)
    pulse.beat()  # what follows has the whole of `train.stall_s`
    temperature, thresholds = _calibrated(trainee, course, seat, pulse)
    if seat.rank:
        return None
    version = seal(store, task.model.name, architecture, _weights(task, net, trained), temperature, thresholds)
    result = {
        "version": version, "run_key": task.run_key, "dataset": task.dataset, "started_at": task.started_at,
        "history": history, "num_train": course.num_train, "num_val": len(course.val),
        "workers": seat.world, "sealed_epoch": _sealed_epoch(history, task.train),
    }  # fmt: skip
    store.write(f"{layout.bundle(task.model.name, version)}/training.json", encode(result))
    checkpoints.finish(result)
    return result


@dataclass(frozen=True)
class Start:
    """The network that training starts from, and whether its head knows nothing yet."""

    net: nn.Module
    architecture: Architecture
    fresh_head: bool


def start_network(task: TrainTask, store: Storage) -> Start:
    """Return the network that training starts from; its new parts depend on the seed only.

    A bundle's head goes on where its classes are the same: the second stage of a training. Any other is replaced.
    """
    model, classes = task.model, Classes(task.classes, task.classes)
    if task.train.mode == "scratch":
        arguments, transforms = zoo.blueprint(model, task.input.size_px)
        architecture = Architecture(model.builder, arguments, "native", classes, transforms)
        torch.manual_seed(task.seed)
        return Start(architecture.build(), architecture, True)
    given = load_pretrained(store, model, task.storage, task.input.size_px)
    kept = given.bundle is not None and _answers_alike(given.bundle, task) and has_linear_head(given.net)
    if not kept:
        torch.manual_seed(task.seed)
        replace_head(given.net, len(classes))
    head = given.head if kept else "linear"
    architecture = Architecture(model.builder, given.arguments, head, classes, given.transforms)
    return Start(given.net, architecture, not kept)


def _answers_alike(bundle: Manifest, task: TrainTask) -> bool:
    multi_label = bundle.thresholds is not None
    return bundle.architecture.classes.names == task.classes and multi_label == task.input.multi_label


def _trainee(
    task: TrainTask, net: nn.Module, transforms: Transforms, seat: Seat, wrap: Wrap
) -> tuple[nn.Module, Trainee]:
    """Return the part that learns, and how it is trained: the head alone on features, or the network on pixels."""
    if task.cached:
        head = head_of(net).to(seat.device)
        return head, Trainee(head, wrap(head), lambda training: None)
    settings = task.train
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    whole = OnPixels(net, transforms, layout).to(seat.device)
    frozen, learning = ([net], [head_of(net)]) if settings.mode == "head" else (_frozen(net, settings), [])
    for parts, learns in ((frozen, False), (learning, True)):
        for parameter in (p for part in parts for p in part.parameters()):
            parameter.requires_grad = learns

    def set_mode(training: bool) -> None:
        whole.train(training)
        for module in frozen:
            module.eval()
        for module in learning:
            module.train(training)

    last = tuple(p for layer in last_layers(net) for p in layer.parameters()) if settings.mode == "finetune" else ()
    compiled: nn.Module = torch.compile(whole) if settings.compile else whole  # type: ignore[assignment]
    return net, Trainee(whole, wrap(compiled), set_mode, last)


def _frozen(net: nn.Module, settings: TrainSettings) -> list[nn.Module]:
    """Return the parts that `train.freeze` names."""
    names = {name for name, _ in net.named_modules() if name}
    for name in settings.freeze:
        if name not in names:
            known = ", ".join(get_close_matches(name, names, 3) or [name for name, _ in net.named_children()])
            raise ModelError(f"train.freeze: {type(net).__name__} has no part {name!r}; it has {known}")
    return [net.get_submodule(name) for name in settings.freeze]


def _course(task: TrainTask, store: Storage, start: Start, threads: int) -> Course:
    architecture = start.architecture
    examples = load_examples(store, task.dataset, task.examples, task.shards, task.split, task.input.multi_label)
    targets = _targets(examples, architecture.classes, task.input.multi_label)
    read = feature_reader(store, task) if task.cached else pixel_reader(store, task, architecture.transforms, threads)
    budget = task.train.cache_mb * 2**20
    inputs = Inputs(examples, targets, ShardCache(task.shards, read, budget))
    if task.train.augment.changes_pictures:
        augmenter = Augmenter(task.train.augment, architecture.transforms, task.input.max_pixels, task.seed)
        encoded = ShardCache(task.shards, encoded_reader(store, task), budget)
        inputs = replace(inputs, pictures=Pictures(encoded, augmenter, threads))
    val = examples.of("val")
    train_by_shard, val = examples.by_shard(examples.of("train")), val
    if isinstance(targets, np.ndarray):
        val = val[targets[val] >= 0]
    return Course(inputs, train_by_shard, val, len(architecture.classes), task.train, task.seed, start.fresh_head)


def _targets(examples: Examples, classes: Classes, multi_label: bool) -> npt.NDArray[np.int64] | LabelMatrix:
    if multi_label:
        return LabelMatrix(examples.labels, classes)
    indices = {label: classes.index_of(str(label)) if label is not None else None for label in set(examples.labels)}
    found = (indices[label] for label in examples.labels)
    return np.array([-1 if index is None else index for index in found], np.int64)


def _calibrated(trainee: Trainee, course: Course, seat: Seat, pulse: Pulse) -> tuple[float, tuple[float, ...] | None]:
    """Return the temperature and, of a multi-label model, the thresholds, fitted on the validation images."""
    if not len(course.val):
        return 1.0, (DEFAULT,) * course.num_classes if course.multi_label else None
    logits, truth = (
        answers.numpy()
        for answers in final_answers(
            trainee, course.inputs, course.val, course.num_classes, course.settings.batch_size, seat, pulse
        )
    )
    temperature = fit_temperature(logits, truth)
    if not course.multi_label:
        return temperature, None
    everything = Meaning(course.num_classes, temperature, (DEFAULT,) * course.num_classes)
    return temperature, fit_thresholds(everything.probabilities(logits).astype(np.float32), truth)


def _weights(task: TrainTask, net: nn.Module, trained: nn.Module) -> dict[str, torch.Tensor]:
    """Return the whole network's weights: a head trained on features belongs to the network that made them."""
    if task.cached:
        head_of(net).load_state_dict(trained.state_dict())
    return net.state_dict()


def _has_bf16(seat: Seat) -> bool:
    if torch.device(seat.device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return has_bf16(vector_flags(cpu_info()))


def _sealed_epoch(history: list[Document], settings: TrainSettings) -> int:
    return best_epoch(history) + 1 if settings.early_stopping is not None else len(history)
