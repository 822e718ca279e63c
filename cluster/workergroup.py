"""Workers that train together: an actor per rank, placed together; they join a process group for the time of a training.

gloo averages gradients on CPUs, nccl on GPUs. The actors stay between trainings: the second one starts at once.
"""

import socket
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.checkout import refuse_other
from cluster.dispatch import NO_ANSWER, answers
from cluster.resources import Size
from cluster.stall import doing
from cluster.workers import Whereabouts, end, whereabouts
from pipeline.pulse import Pulse
from pipeline.tasks import TrainTask

if TYPE_CHECKING:
    from torch import nn

START_S = 300.0


@dataclass(frozen=True)
class Standing:
    """A worker's pulse as the driver last heard of it; see Pulse."""

    examples: int = 0
    steps: int = 0
    beats: int = 0
    busy_s: float = 0.0
    warnings: tuple[str, ...] = ()


class _Rank:
    """The actor. It answers questions in one thread while it trains in another."""

    def __init__(self) -> None:
        self._pulse, self._training = Pulse(), (0, 0.0)  # thread, start

    def where(self) -> Whereabouts:
        """Return what to call this worker, where it is and what it runs."""
        return whereabouts()

    def meeting(self) -> str:
        """Return a free `host:port` here, for the ranks to meet at."""
        host = ray.util.get_node_ip_address()
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def standing(self) -> Standing:
        """Return how far it is."""
        pulse = self._pulse
        return Standing(pulse.examples, pulse.steps, pulse.beats, pulse.busy_s, tuple(pulse.warnings))

    def doing(self) -> str:
        """Return what its training thread is doing."""
        thread, since = self._training
        return doing({thread: ("training", since)})

    def train(self, task: TrainTask, rank: int, world: int, meeting: str) -> None:
        """Take part in a training, in the thread of the group `train`."""
        import torch
        import torch.distributed as dist

        from pipeline.allocator import keep_freed_memory
        from pipeline.fitting import fit
        from pipeline.seat import Seat

        self._pulse, self._training = Pulse(), (threading.get_ident(), time.monotonic())
        torch.set_num_threads(task.train.cpus_per_worker)
        gpus = task.train.gpus_per_worker
        device = "cuda:0" if gpus else "cpu"
        if not gpus:
            keep_freed_memory()
        if world == 1:
            fit(task, Seat(device=device), lambda module: module, self._pulse)
            return
        backend = "nccl" if gpus >= 1 else "gloo"  # nccl refuses two ranks on one GPU
        patience = timedelta(seconds=2 * task.train.stall_s)  # the driver notices first
        dist.init_process_group(backend, f"tcp://{meeting}", patience, world_size=world, rank=rank)

        def reduce(sums: torch.Tensor) -> torch.Tensor:
            dist.all_reduce(sums)
            return sums

        fit(task, Seat(rank, world, device, reduce), _averaging, self._pulse)
        dist.destroy_process_group()


def _averaging(module: "nn.Module") -> "nn.Module":
    """Return a module that averages its gradients over the workers; buffers are shared once an epoch, by `training`."""
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)


class WorkerGroup:
    """`world` workers of one size, until it is closed.

    Raises
    ------
    TimeoutError
        When there was no room for all of them at once for `patience_s`.
    RayError
        When one of them did not start.
    """

    def __init__(self, world: int, size: Size, patience_s: float) -> None:
        self.world, self.size = world, size
        self._actors: list[Any] = []
        selector = [dict(size.node_labels)] * world if size.node_labels else None
        self._place = placement_group([size.bundle] * world, strategy="PACK", bundle_label_selector=selector)
        try:
            if not self._place.wait(patience_s):
                raise TimeoutError(f"no room for {world} worker(s) of {size} for {patience_s:g} s")
            self._actors.extend(self._start(rank) for rank in range(world))
            found = ray.get([actor.where.remote() for actor in self._actors], timeout=START_S)
        except BaseException:
            self.close()
            raise
        self.names = [f"rank {rank} ({each.name})" for rank, each in enumerate(found)]
        for each in found:
            refuse_other(each.program, each.name)
        self._standings: list[Standing] = []
        self._asked: list[Future[Standing]] = []

    def _start(self, rank: int) -> Any:
        # No restarts by Ray: a group that lost one rank starts anew, from a checkpoint.
        remote = ray.remote(**self.size.options, max_restarts=0, concurrency_groups={"train": 1})(_Rank)
        return remote.options(scheduling_strategy=PlacementGroupSchedulingStrategy(self._place, rank)).remote()

    def train(self, task: TrainTask) -> list[Future[None]]:
        """Start a training and return the end of each rank's part."""
        meeting = ray.get(self._actors[0].meeting.remote(), timeout=START_S)
        self._standings = [Standing()] * self.world
        parts = [
            actor.train.options(concurrency_group="train").remote(task, rank, self.world, meeting).future()
            for rank, actor in enumerate(self._actors)
        ]
        self._asked = [actor.standing.remote().future() for actor in self._actors]
        return parts

    def standings(self) -> list[Standing]:
        """Return what each rank last said of itself, without waiting for one that does not answer."""
        for rank, asked in enumerate(self._asked):
            if asked.done():
                with suppress(RayError):  # of one that is gone its part in the training says so
                    self._standings[rank] = asked.result()
                self._asked[rank] = self._actors[rank].standing.remote().future()
        return list(self._standings)

    def last_standings(self) -> list[Standing]:
        """Return how far all ranks are now; all of them must live."""
        found: list[Standing] = ray.get([actor.standing.remote() for actor in self._actors], timeout=START_S)
        return found

    def doing(self) -> list[str]:
        """Return what each rank is doing, as far as they answer within seconds."""
        said = answers({actor.doing.remote(): rank for rank, actor in enumerate(self._actors)})
        return [said.get(rank, NO_ANSWER) for rank in range(self.world)]

    def close(self) -> None:
        """End the workers and give their place back."""
        for actor in self._actors:
            end(actor)
        if ray.is_initialized():  # without a session this would start one
            remove_placement_group(self._place)
