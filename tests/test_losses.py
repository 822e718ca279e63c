import pytest
import torch
from torch.nn import functional

from pipeline.losses import Targets, guessing_loss, right_answers, summed_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_softened_targets(smoothing):
    logits, targets = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2])
    soft = torch.full((5, 4), smoothing / 4, dtype=torch.float64)
    soft[range(5), targets] += 1 - smoothing
    expected = -(soft * torch.log_softmax(logits, 1)).sum()
    assert summed_loss(logits, Targets(targets), smoothing).item() == pytest.approx(expected.item(), rel=1e-5)


def test_half_precision_is_summed_in_single():
    logits = torch.randn(1000, 10).bfloat16()
    targets = Targets(torch.zeros(1000, dtype=torch.int64))
    loss = summed_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(summed_loss(logits.float(), targets).item())


def test_mixed_targets_are_the_sum_of_their_shares():
    logits, first, second = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    shares = torch.tensor([0.5, 1.0, 0.75, 0.6])
    soft = torch.zeros(4, 3)
    for row in range(4):
        soft[row, first[row]] += shares[row]
        soft[row, second[row]] += 1 - shares[row]
    expected = -(soft * torch.log_softmax(logits, 1)).sum()
    torch.testing.assert_close(summed_loss(logits, Targets(first, second, shares)), expected)


def test_classes_may_count_differently():
    logits, classes = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    weights = torch.tensor([2.0, 0.5, 1.0])
    each = [summed_loss(logits[n : n + 1], Targets(classes[n : n + 1])) for n in range(4)]
    expected = sum(weights[classes[n]] * each[n] for n in range(4))
    torch.testing.assert_close(summed_loss(logits, Targets(classes), 0.0, weights), expected)


@pytest.mark.parametrize("is_mixed", [True, False])
def test_targets_are_cut_as_tensors_are(is_mixed):
    tensors = [torch.arange(7), torch.arange(7) + 10, torch.linspace(0.5, 1, 7)]
    whole = Targets(*tensors) if is_mixed else Targets(tensors[0])
    pieces = list(whole.pieces(3))
    assert [len(piece) for piece in pieces] == [3, 2, 2]
    assert torch.equal(torch.cat([piece.classes for piece in pieces]), tensors[0])
    if is_mixed:
        assert torch.equal(torch.cat([piece.shares for piece in pieces]), tensors[2])
    else:
        assert pieces[0].others is None
    moved = whole.to("meta")
    assert moved.classes.is_meta
    assert (moved.shares is not None) is is_mixed


KNOWN = torch.tensor([[1, 0, -1, 0], [0, 0, 1, 1], [-1, -1, -1, -1], [0, 0, 0, -1]], dtype=torch.int8)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_of_multi_label_images_it_is_the_mean_over_what_is_known_of_each(smoothing):
    logits = torch.randn(4, 4, requires_grad=True)
    expected = 0.0
    for row, known in zip(logits, KNOWN, strict=True):
        each = [
            functional.binary_cross_entropy_with_logits(x, torch.tensor((1 - smoothing) * k + smoothing / 2))
            for x, k in zip(row, known.tolist(), strict=True)
            if k >= 0
        ]
        expected += sum(each) / max(1, len(each))
    loss = summed_loss(logits, Targets(KNOWN), smoothing)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert (logits.grad == 0).tolist() == (KNOWN == -1).tolist()


def test_mixed_multi_label_targets_are_the_sum_of_their_shares():
    logits, shares = torch.randn(4, 4), torch.tensor([0.5, 1.0, 0.75, 0.6])
    others = KNOWN.flip(0)
    each = [summed_loss(logits[n : n + 1], Targets(KNOWN[n : n + 1])) for n in range(4)]
    other = [summed_loss(logits[n : n + 1], Targets(others[n : n + 1])) for n in range(4)]
    expected = sum(s * a + (1 - s) * b for s, a, b in zip(shares, each, other, strict=True))
    torch.testing.assert_close(summed_loss(logits, Targets(KNOWN, others, shares)), expected)


def test_a_multi_label_answer_is_right_when_the_best_known_class_is_there():
    logits = torch.tensor([[2.0, 1.0, 9.0, 0.0], [2.0, 1.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -0.1, 9.0]])
    assert right_answers(logits, KNOWN).tolist() == [True, False, True, True]
    assert right_answers(-logits, KNOWN[3:].expand(4, 4)).tolist() == [True, False, False, False]
    assert right_answers(logits, torch.tensor([2, 0, 1, 0])).tolist() == [True, True, False, False]


def test_guessing():
    assert guessing_loss(10, False) == pytest.approx(2.302585)
    blind = summed_loss(torch.zeros(1, 4), Targets(KNOWN[:1])).item()
    assert guessing_loss(10, True) == pytest.approx(blind)
