"""One worker's whole part in a training: read the examples, build the network, train, and (rank 0) seal the bundle."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline import layout, zoo
from pipeline.bundle import seal
from pipeline.checkpoints import Checkpoints
from pipeline.classes import Classes
from pipeline.documents import Document, encode
from pipeline.engine import normalize
from pipeline.examples import load_examples
from pipeline.heads import has_linear_head, head_of, replace_head
from pipeline.loading import Inputs, ShardCache, feature_reader, pixel_reader
from pipeline.manifest import Architecture
from pipeline.pretrained import load_pretrained
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.sizes import check_size
from pipeline.storage import Storage, open_storage
from pipeline.tasks import TrainTask
from pipeline.training import Course, Trainee, train
from pipeline.transforms import Transforms

Wrap = Callable[[nn.Module], nn.Module]


class OnPixels(nn.Module):
    """A network that takes uint8 pixels [B, H, W, C]: normalising belongs to it."""

    def __init__(self, net: nn.Module, transforms: Transforms) -> None:
        super().__init__()
        self.net, self._transforms = net, transforms

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return logits [B, K]; in training, those of auxiliary classifiers too where the network has some."""
        return self.net(normalize(pixels, self._transforms).contiguous())


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
        alone = 0 if task.train.mode == "head" else min(task.train.batch_size, course.num_train) // seat.world
        check_size(architecture.builder, architecture.arguments, architecture.transforms, alone)
    checkpoints = Checkpoints(store, task.run_key, task.train.keep_checkpoints)
    history = train(trainee, course, seat, checkpoints, pulse)
    if seat.rank:
        return None
    pulse.beat()  # what follows has the whole of `train.stall_s`
    version = seal(store, task.model.name, architecture, _weights(task, net, trained))
    result = {
        "version": version, "run_key": task.run_key, "dataset": task.dataset, "started_at": task.started_at,
        "history": history, "num_train": course.num_train, "num_val": len(course.val),
        "workers": seat.world,
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
        transforms = zoo.published_transforms(model, task.input.size_px)
        arguments = zoo.builder_arguments(model, transforms)
        architecture = Architecture(model.builder, arguments, "native", classes, transforms)
        torch.manual_seed(task.seed)
        return Start(architecture.build(), architecture, True)
    given = load_pretrained(store, model, task.storage, task.input.size_px)
    kept = given.classes is not None and given.classes.names == classes.names and has_linear_head(given.net)
    if not kept:
        torch.manual_seed(task.seed)
        replace_head(given.net, len(classes))
    head = given.head if kept else "linear"
    architecture = Architecture(model.builder, given.arguments, head, classes, given.transforms)
    return Start(given.net, architecture, not kept)


def _trainee(
    task: TrainTask, net: nn.Module, transforms: Transforms, seat: Seat, wrap: Wrap
) -> tuple[nn.Module, Trainee]:
    """Return the part that learns, and how it is trained: the head alone on features, or the network on pixels."""
    if task.train.mode != "head":
        whole = OnPixels(net, transforms).to(seat.device)
        return net, Trainee(whole, wrap(whole), lambda training: _set_mode(whole, whole, training))
    head = head_of(net)
    if task.cached:
        head.to(seat.device)
        return head, Trainee(head, wrap(head), lambda training: None)
    whole = OnPixels(net, transforms).to(seat.device)
    for parameter in net.parameters():
        parameter.requires_grad = False
    for parameter in head.parameters():
        parameter.requires_grad = True
    return net, Trainee(whole, wrap(whole), lambda training: _set_mode(whole, head, training))


def _set_mode(whole: nn.Module, learning: nn.Module, training: bool) -> None:
    whole.eval()
    learning.train(training)


def _course(task: TrainTask, store: Storage, start: Start, threads: int) -> Course:
    architecture = start.architecture
    examples = load_examples(store, task.dataset, task.examples, task.shards, task.split)
    indices = {label: architecture.classes.index_of(label) for label in set(examples.labels)}
    targets = torch.tensor(
        [-1 if (i := indices[label]) is None else i for label in examples.labels], dtype=torch.int64
    ).numpy()
    read = feature_reader(store, task) if task.cached else pixel_reader(store, task, architecture.transforms, threads)
    inputs = Inputs(examples, targets, ShardCache(task.shards, read, task.train.cache_mb * 2**20))
    val = examples.of("val")
    train_by_shard, val = examples.by_shard(examples.of("train")), val[targets[val] >= 0]
    return Course(inputs, train_by_shard, val, len(architecture.classes), task.train, task.seed, start.fresh_head)


def _weights(task: TrainTask, net: nn.Module, trained: nn.Module) -> dict[str, torch.Tensor]:
    """Return the whole network's weights: a head trained on features belongs to the network that made them."""
    if task.cached:
        head_of(net).load_state_dict(trained.state_dict())
    return net.state_dict()
