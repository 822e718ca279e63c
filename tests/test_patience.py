import pytest

from pipeline.patience import best_epoch, is_over


def history(*losses):
    return [{"val_loss": loss} for loss in losses]


@pytest.mark.parametrize(
    ("losses", "best", "over_after"),
    [((), -1, None), ((2.0,), 0, None), ((2.0, 1.0), 1, None), ((2.0, 1.0, 1.5), 1, 1),
     ((1.0, 2.0, 1.0), 0, 2), ((3.0, 2.0, 2.0, 1.0), 3, None)],
)  # fmt: skip
def test_the_best_epoch_and_how_long_it_is_ago(losses, best, over_after):
    assert best_epoch(history(*losses)) == best
    assert [is_over(history(*losses), patience) for patience in (1, 2, 3)] == [
        over_after is not None and patience <= over_after for patience in (1, 2, 3)
    ]
    assert not is_over(history(*losses), None)
