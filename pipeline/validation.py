"""What a network in training answers for validation images: each worker asks for its share, and all get all answers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from pipeline.lanes import Indices
from pipeline.loading import Inputs
from pipeline.prefetch import ahead
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.stepping import Trainee

# Of more than so many numbers (256 MB), N images times K classes, every so many images are taken: enough to fit what is
# sealed with the weights.
MOST_NUMBERS = 2**26


def answered(
    trainee: Trainee, inputs: Inputs, images: Indices, batch_size: int, seat: Seat, pulse: Pulse,
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Yield logits [B, K] and targets of this worker's share of `images`, every `world`th, batch by batch."""
    trainee.set_mode(False)
    mine = images[seat.rank :: seat.world]

    def gather(part: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, targets = inputs.gather(part)
        return pixels.to(seat.device), targets.to(seat.device)

    for pixels, targets in ahead(gather, (mine[n : n + batch_size] for n in range(0, len(mine), batch_size))):
        with torch.inference_mode(), precision():
            logits = trainee.module(pixels).float()
        yield logits, targets
        pulse.beat()


def joined(shares: list[torch.Tensor], num_images: int, num_classes: int, seat: Seat) -> torch.Tensor:
    """Return the answers of all workers for all images, float32 [N, K], in the order of the images; on every worker."""
    longest = -(-num_images // seat.world)
    mine = torch.zeros(longest, num_classes, device=seat.device)
    place = 0
    for share in shares:
        mine[place : place + len(share)] = share
        place += len(share)
    return seat.gathered(mine).transpose(0, 1).reshape(-1, num_classes)[:num_images].cpu()


def final_answers(
    trainee: Trainee, inputs: Inputs, images: Indices, num_classes: int, batch_size: int, seat: Seat, pulse: Pulse
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits [N, K] and targets of validation images, computed as labelling's reference does: in fp32.

    By rank 0's weights, which are sealed: the others have none of the best epoch's.
    """
    seat.share(trainee.module.state_dict().values())
    some = sampled(images, num_classes)
    shares = [logits for logits, _ in answered(trainee, inputs, some, batch_size, seat, pulse)]
    return joined(shares, len(some), num_classes, seat), torch.from_numpy(inputs.targets[some])


def sampled(images: Indices, num_classes: int) -> Indices:
    """Return evenly spaced images, so many that all their answers fit into memory."""
    most = max(1, MOST_NUMBERS // num_classes)
    return images[:: -(-len(images) // most)] if len(images) > most else np.asarray(images)
