"""Data-parallel training through Ray Train: one worker per seat, gradients averaged by DDP (gloo on CPU, nccl on GPU).

Ray Train places the workers and starts them again when one dies; positions, checkpoints and results are ours.
"""

import tempfile
import threading
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import ray

from cluster.board import Board
from cluster.resources import fitting
from pipeline.errors import ModelError, NightshiftError
from pipeline.tasks import TrainTask

LOOK_EVERY_S = 0.5
# After a refusal: enough for workers that all refuse to end by themselves. One that refuses alone leaves the others waiting
# for it in a collective, for ever; they end with the session.
END_S = 30.0


def train(task: TrainTask, already: int, advanced: Callable[[int], None]) -> None:
    """Train on the session's workers and return when the bundle is sealed and the result recorded.

    Parameters
    ----------
    already : int
        Examples of the epochs that an earlier run finished.
    advanced : Callable[[int], None]
        Told how many more examples are done; fewer than none when a worker died and the epoch starts again.

    Raises
    ------
    UsageError
        What a worker found wrong with the config, the input or the model. A ModelError is the same on every worker and
        at every attempt, so it is not tried again.
    NightshiftError
        When training failed more often than `train.max_failures` allows.
    """
    fitting(1, task.train.gpus_per_worker, task.train.workers)
    board = ray.remote(num_cpus=0)(Board).remote()
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=_fit, args=(task, board, outcome), daemon=True)  # keeps Ctrl-C with this thread
    thread.start()
    shown, refusal = already, None
    while thread.is_alive() and refusal is None:
        thread.join(LOOK_EVERY_S)
        total, refusal = ray.get(board.read.remote())
        advanced(max(total, already) - shown)
        shown = max(total, already)
    if refusal is not None:
        thread.join(END_S)
    ray.kill(board)
    if refusal is not None:
        raise refusal
    if outcome[0] is not None:
        raise _explained(outcome[0])


def _fit(task: TrainTask, board: Any, outcome: list[BaseException | None]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpus = task.train.gpus_per_worker
    try:
        with tempfile.TemporaryDirectory(prefix="nightshift-train-") as scratch:  # Ray's own files; nothing of ours
            TorchTrainer(
                partial(_worker, task, board),
                scaling_config=ScalingConfig(
                    num_workers=task.train.workers,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1},
                ),
                run_config=RunConfig(
                    name=task.run_key,
                    storage_path=scratch,
                    failure_config=FailureConfig(max_failures=task.train.max_failures),
                ),
            ).fit()
        outcome.append(None)
    except Exception as error:  # whatever it is, the waiting thread raises it: Ray's TrainingFailedError is no RayError
        outcome.append(error)


def _worker(task: TrainTask, board: Any) -> None:
    """Run one seat. Ray Train has set up the process group."""
    import torch
    import torch.distributed as dist
    from ray.train import get_context
    from ray.train.torch import get_device

    from pipeline.fitting import fit
    from pipeline.training import Seat

    context = get_context()
    rank, world, device = context.get_world_rank(), context.get_world_size(), get_device()
    torch.set_num_threads(1)

    def reduce(sums: torch.Tensor) -> torch.Tensor:
        if world > 1:
            dist.all_reduce(sums)
        return sums

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        return torch.nn.parallel.DistributedDataParallel(module) if world > 1 else module

    poster = _Poster(board, rank)
    try:
        fit(task, Seat(rank, world, str(device), reduce), wrap, poster)
    except ModelError as error:  # a normal end for Ray Train, which would only try it again
        ray.get(board.refuse.remote(error))
    poster.post()


class _Poster:
    """A counter that posts to the board at most twice a second, and at the end."""

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._name = board, str(rank)
        self._done, self._posted_at = 0, 0.0

    def __call__(self, count: int) -> None:
        self._done += count
        if monotonic() - self._posted_at > LOOK_EVERY_S:
            self._posted_at = monotonic()
            self._board.post.remote(self._name, self._done)

    def post(self) -> None:
        """Post and wait until it stands there."""
        ray.get(self._board.post.remote(self._name, self._done))


def _explained(error: BaseException) -> NightshiftError:
    """Return the worker's own error where it was one of ours, else one that names the first failure."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        for candidate in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(candidate, NightshiftError):
                return candidate
    first = failures[0]
    lines = str(first).strip().splitlines() or [""]
    return NightshiftError(
        f"training failed on {len(failures)} worker(s): {type(first).__name__}: {lines[0][:300]}; "
        "the same command continues from the last checkpoint"
    )
