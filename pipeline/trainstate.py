"""The state of a training between two steps, as a checkpoint holds it: enough to go on as if nothing had happened."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.checkpoints import Checkpoint, Checkpoints
from pipeline.documents import Document
from pipeline.errors import TransientError
from pipeline.seat import Seat

LOOKS = 20
# A worker's sums over an epoch: loss, right answers, examples.
SUMS = 3


@dataclass
class Position:
    """Where a training stands.

    `sums` [world, 3] are the workers' of the epoch so far, `seconds` those that it took, `first_loss` the mean loss of
    the very first step.
    """

    history: list[Document] = field(default_factory=list)  # a record for each epoch that is over
    step: int = 0  # of the epoch
    seconds: float = 0.0
    examples: int = 0  # trained on by all workers, over all epochs
    first_loss: float | None = None
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(1, SUMS, dtype=torch.float64))

    @property
    def epoch(self) -> int:
        """The number of the epoch, from 0."""
        return len(self.history)

    def sums_of(self, seat: Seat) -> torch.Tensor:
        """Return this worker's sums [3]: its own when there are as many workers as then, else rank 0 takes all."""
        if len(self.sums) == seat.world:
            return self.sums[seat.rank].to(seat.device)
        return (self.sums.sum(0) if seat.rank == 0 else torch.zeros(SUMS, dtype=torch.float64)).to(seat.device)


def capture(
    position: Position, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Document, dict[str, torch.Tensor]]:
    """Return the state as a JSON document and tensors."""
    tensors = {f"model.{key}": tensor for key, tensor in module.state_dict().items()}
    state, scalars = optimizer.state_dict(), {}
    for number, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{key}"] = value
            else:
                scalars[f"{number}.{key}"] = value
    document = {
        "history": list(position.history), "step": position.step, "seconds": position.seconds,
        "examples": position.examples, "first_loss": position.first_loss, "sums": position.sums.tolist(),
        "groups": state["param_groups"], "scalars": scalars,
    }  # fmt: skip
    return document, tensors


def restore(checkpoint: Checkpoint, module: nn.Module, optimizer: torch.optim.Optimizer) -> Position:
    """Bring module and optimizer into a checkpoint's state and return its position."""
    document, tensors = checkpoint.document, checkpoint.tensors
    module.load_state_dict({key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")})
    state: dict[int, dict[str, Any]] = {}
    values = {key.removeprefix("optimizer."): t for key, t in tensors.items() if key.startswith("optimizer.")}
    for key, value in (values | document["scalars"]).items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": document["groups"]})
    return Position(
        list(document["history"]), document["step"], document["seconds"], document["examples"],
        document["first_loss"], torch.tensor(document["sums"], dtype=torch.float64),
    )  # fmt: skip


def agreed(checkpoints: Checkpoints, seat: Seat) -> Checkpoint | None:
    """Return the newest checkpoint, the same on every worker.

    Workers of a killed run may live on for seconds and write newer ones between one worker's look and the next one's.
    All values are equal if, and only if, n times the sum of their squares is the square of their sum.
    """
    for _ in range(LOOKS):
        checkpoint = checkpoints.newest()
        token = 1.0 + int(checkpoint.sha256[:6], 16) if checkpoint else 0.0  # 24 bits: squares are exact in float64
        sums = torch.tensor([token, token**2], dtype=torch.float64, device=seat.device)
        total, squares = seat.reduce(sums).tolist()
        if seat.world * squares == total**2:
            return checkpoint
    raise TransientError(
        f"the workers read other checkpoints {LOOKS} times: another run of this training writes them; wait for its end"
    )
