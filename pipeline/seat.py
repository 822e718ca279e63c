"""One worker's place among those that train together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Seat:
    """One worker of `world`: its rank, its device, and the sum over all of them."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    reduce: Reduce = lambda sums: sums

    def gathered(self, mine: torch.Tensor) -> torch.Tensor:
        """Return every worker's tensor [world, ...], on every worker."""
        rows = torch.zeros(self.world, *mine.shape, dtype=mine.dtype, device=self.device)
        rows[self.rank] = mine
        return self.reduce(rows)

    def from_first(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return rank 0's tensor, on every worker."""
        mine = tensor.detach().to(self.device, copy=True)
        return self.reduce(mine if self.rank == 0 else torch.zeros_like(mine))

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give every worker rank 0's values of these tensors, in place."""
        with torch.no_grad():
            for tensor in tensors if self.world > 1 else ():
                tensor.copy_(self.from_first(tensor))
