import pytest

from pipeline.counts import Counts
from pipeline.errors import IntegrityError


def test_counts_add_up():
    assert sum([Counts(5, 3, 2), Counts(1, 1, 0)], Counts()) == Counts(6, 4, 2)


@pytest.mark.parametrize(("counts", "share"), [(Counts(), 0.0), (Counts(4, 3, 1), 0.25), (Counts(2, 0, 2), 1.0)])
def test_bad_fraction_is_the_quarantined_share(counts, share):
    assert counts.bad_fraction == share


def test_books_that_balance_pass():
    for counts in (Counts(), Counts(5, 3, 2), Counts(2, 0, 2)):
        counts.check("here")


@pytest.mark.parametrize("counts", [Counts(5, 3, 1), Counts(5, 3, 3), Counts(0, 1, 0)])
def test_books_that_do_not_balance_stop_the_run_and_say_where(counts):
    with pytest.raises(IntegrityError, match=f"shard 7: {counts.images_in} images in, but {counts.labelled} labelled"):
        counts.check("shard 7")
