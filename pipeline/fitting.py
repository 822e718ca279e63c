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
from pipeline.curves import Curves
from pipeline.documents import Document, encode
from pipeline.engine import normalize
from pipeline.errors import ModelError
from pipeline.examples import Examples, load_examples
from pipeline.folds import fold_of
from pipeline.heads import has_linear_head, head_of, last_layers, replace_head
from pipeline.lanes import Indices
from pipeline.loading import Inputs, Pictures, ShardCache, encoded_reader, feature_reader, pixel_reader
from pipeline.logits import Meaning
from pipeline.manifest import Architecture, Manifest
from pipeline.overfitting import overfitting
from pipeline.patience import sealed_epoch
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
        return self.net(normalize(pixels, self._transforms, self._layout))


def fit(task: TrainTask, seat: Seat, wrap: Wrap, pulse: Pulse) -> Document | None:
    """Train and, on rank 0, seal the bundle and record the result, which is returned there.

    Parameters
    ----------
    wrap : Wrap
        Makes gradients average over the workers; the identity for one worker.
    """
    store = open_storage(task.store, task.storage)
    lesson = prepare(task, store, seat, wrap, pulse)
    trainee, course = lesson.trainee, lesson.course
    checkpoints = Checkpoints(store, task.run_key, task.train.keep_checkpoints)
    curves = Curves(store, task.started_at, pulse)
    history = train(
        trainee, course, seat, checkpoints, pulse, lambda epochs: curves.write(layout.training(task.run_key), epochs)
    )
    pulse.beat()  # what follows has the whole of `train.stall_s`
    answers = _final(trainee, course, seat, pulse)  # of all workers, and so asked of all
    if seat.rank:
        return None
    temperature, thresholds = _calibrated(answers, course)
    weights = _weights(task, lesson.net, lesson.trained)
    version = seal(store, task.model.name, lesson.architecture, weights, temperature, thresholds)
    sealed, folder = sealed_epoch(history, task.train.early_stopping), layout.bundle(task.model.name, version)
    result = {
        "version": version, "run_key": task.run_key, "dataset": task.dataset, "started_at": task.started_at,
        "history": history, "num_train": course.num_train, "num_val": len(course.val),
        "workers": seat.world, "sealed_epoch": sealed,
        "overfitting": overfitting(history, sealed),
    }  # fmt: skip
    curves.write(folder, history)
    store.write(f"{folder}/training.json", encode(result))
    checkpoints.finish(result)
    return result


@dataclass(frozen=True)
class Lesson:
    """What one worker needs to train: the network, the part of it that learns, and the course."""

    net: nn.Module
    architecture: Architecture
    trained: nn.Module
    trainee: Trainee
    course: Course


def prepare(task: TrainTask, store: Storage, seat: Seat, wrap: Wrap, pulse: Pulse) -> Lesson:
    """Read the examples and build the network that a worker trains; a network that cannot be trained so is refused."""
    start = start_network(task, store)
    net, architecture = start.net, start.architecture
    trained, trainee = _trainee(task, net, architecture.transforms, seat, wrap)
    course = _course(task, store, start)
    if not task.cached:
        fewest = task.train.fewest_images(min(task.train.batch_size, course.num_train), seat.world)
        check_size(architecture.builder, architecture.arguments, architecture.transforms, fewest)
    if not seat.rank and task.train.precision == "bf16" and not _has_bf16(seat):
        pulse.warn(
            "precision: this processor emulates bfloat16, which is slower than train.precision: fp32 and no more accurate"
        )
    return Lesson(net, architecture, trained, trainee, course)


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


def _course(task: TrainTask, store: Storage, start: Start) -> Course:
    architecture, threads = start.architecture, task.train.cpus_per_worker
    examples = load_examples(store, task.dataset, task.examples, task.shards, task.split, task.input.multi_label)
    targets = _targets(examples, architecture.classes, task.input.multi_label)
    read = (
        feature_reader(store, task, examples)
        if task.cached
        else pixel_reader(store, task, examples, architecture.transforms, threads)
    )
    budget = task.train.cache_mb * 2**20
    inputs = Inputs(examples, targets, ShardCache(task.shards, read, budget))
    if task.train.augment.changes_pictures:
        augmenter = Augmenter(task.train.augment, architecture.transforms, task.input.max_pixels, task.seed)
        encoded = ShardCache(task.shards, encoded_reader(store, task, examples), budget)
        inputs = replace(inputs, pictures=Pictures(encoded, augmenter, threads))
    learnt, val = _chosen(task, examples)
    if isinstance(targets, np.ndarray):  # of what is held out, and so learnt in other folds, training may know no class
        learnt, val = learnt[targets[learnt] >= 0], val[targets[val] >= 0]
    return Course(
        inputs, examples.by_shard(learnt), val, len(architecture.classes), task.train, task.seed, start.fresh_head
    )


def _chosen(task: TrainTask, examples: Examples) -> tuple[Indices, Indices]:
    """Return the examples to learn from and to validate on."""
    if task.fold is None or task.train.folds is None:
        return examples.of("train"), examples.of("val")
    return fold_of(examples, task.train.folds, task.fold, task.seed)


def _targets(examples: Examples, classes: Classes, multi_label: bool) -> npt.NDArray[np.int64] | LabelMatrix:
    if multi_label:
        return LabelMatrix(examples.labels, classes)
    indices = {label: classes.index_of(str(label)) if label is not None else None for label in set(examples.labels)}
    found = (indices[label] for label in examples.labels)
    return np.array([-1 if index is None else index for index in found], np.int64)


def _final(trainee: Trainee, course: Course, seat: Seat, pulse: Pulse) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return logits and targets of the validation images by the weights that are sealed, None without such images."""
    if not len(course.val):
        return None
    size = course.settings.batch_size
    return final_answers(trainee, course.inputs, course.val, course.num_classes, size, seat, pulse)


def _calibrated(
    answers: tuple[torch.Tensor, torch.Tensor] | None, course: Course
) -> tuple[float, tuple[float, ...] | None]:
    """Return the temperature and, of a multi-label model, the thresholds, fitted on the validation images."""
    unfitted = (DEFAULT,) * course.num_classes
    if answers is None:
        return 1.0, unfitted if course.multi_label else None
    logits, truth = (values.numpy() for values in answers)
    temperature = fit_temperature(logits, truth)
    if not course.multi_label:
        return temperature, None
    everything = Meaning(course.num_classes, temperature, unfitted)
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
