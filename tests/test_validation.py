import numpy as np
import torch
from seats import both
from torch import nn

from pipeline import validation
from pipeline.pulse import Pulse
from pipeline.seat import Seat
from pipeline.stepping import Trainee
from pipeline.validation import answered, final_answers, joined, sampled


class Numbers:
    """Inputs whose example i is the vector [i, 1]."""

    targets = np.arange(100) * 10

    def gather(self, indices):
        vectors = torch.stack([torch.from_numpy(indices).float(), torch.ones(len(indices))], dim=1)
        return vectors, torch.from_numpy(self.targets[indices])


def trainee() -> Trainee:
    module = nn.Linear(2, 3)
    return Trainee(module, module, module.train)


def test_all_workers_together_answer_for_every_image_once_in_order():
    images, whole = np.arange(3, 17), trainee()
    alone, targets = final_answers(whole, Numbers(), images, 3, 4, Seat(), Pulse())
    assert targets.tolist() == (images * 10).tolist()
    assert torch.equal(alone, whole.module(Numbers().gather(images)[0]).detach())
    assert not whole.module.training

    shares = [[out for out, _ in answered(whole, Numbers(), images, 4, Seat(rank, 3), Pulse())] for rank in range(3)]
    assert [sum(map(len, share)) for share in shares] == [5, 5, 4]
    rows = []  # as an all-reduce adds what each worker puts in its own row
    for rank, share in enumerate(shares):
        joined(share, len(images), 3, Seat(rank, 3, reduce=lambda mine: rows.append(mine) or mine))
    merged = joined(shares[0], len(images), 3, Seat(0, 3, reduce=lambda _: sum(rows)))
    torch.testing.assert_close(merged, alone)


def test_of_too_many_images_some_are_taken_all_over(monkeypatch):
    monkeypatch.setattr(validation, "MOST_NUMBERS", 30)
    assert sampled(np.arange(10), 3).tolist() == list(range(10))
    assert sampled(np.arange(25), 3).tolist() == list(range(0, 25, 3))
    assert len(sampled(np.arange(5), 1000)) == 1


def test_the_weights_of_the_first_worker_answer():
    images, workers = np.arange(10), [trainee(), trainee()]  # with weights of their own
    expected = workers[0].module(Numbers().gather(images)[0]).detach()
    for found, _ in both(lambda seat: final_answers(workers[seat.rank], Numbers(), images, 3, 2, seat, Pulse())):
        torch.testing.assert_close(found, expected)
