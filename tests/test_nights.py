import math
import re

import numpy as np
import pytest

from pipeline.checksettings import CheckSettings
from pipeline.ledger import LedgerEntry
from pipeline.nights import Night, by_date, compare, night_from_json, night_of, objections, stability, together
from pipeline.tables import Written

SETTINGS = CheckSettings(max_psi=0.1, max_confidence_shift=0.05, min_volume=0.5, max_volume=2.0)
NAMES = {"0": "ant", "1": "bee", "2": "cat"}


def bins(*places):
    return [dict(places).get(place, 0) for place in range(20)]


def night(ant=100, bee=100, cat=100, bad=0, confidence=15):
    labelled = ant + bee + cat
    return Night(labelled + bad, bad, {"0": ant, "1": bee, "2": cat}, bins((confidence, labelled)))


def entry(**values):
    written = Written("labels/x.parquet", 1, 1, "0" * 64)
    return LedgerEntry("s", "r", labels=written, quarantine=None, **values)


def test_a_night_is_the_sum_of_its_shards():
    entries = [
        entry(segments={"a": [5, 4, 1]}, classes={"0": 3, "2": 1}, confidences=bins((19, 4))),
        entry(segments={"b": [2, 2, 0], "c": [1, 1, 0]}, classes={"0": 3}, confidences=bins((18, 3))),
        entry(segments={"d": [2, 0, 2]}),
    ]
    found = night_of(entries)
    assert found == Night(10, 3, {"0": 6, "2": 1}, bins((19, 4), (18, 3)))
    assert found.mean_confidence == pytest.approx((4 * 0.975 + 3 * 0.925) / 7)
    assert night_from_json(found.to_json()) == found
    assert together([found, found]) == Night(20, 6, {"0": 12, "2": 2}, bins((19, 8), (18, 6)))
    assert night_of([]).mean_confidence is None


def test_the_index_is_the_published_formula():
    expected, actual = np.array([200, 300, 500]), np.array([400, 300, 300])
    shares = [(side + 0.5) / (1000 + 1.5) for side in (expected, actual)]
    by_hand = sum((a - e) * math.log(a / e) for e, a in zip(*shares, strict=True))
    assert stability(expected, actual) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.2408, abs=1e-3)  # 0.2 ln 2 + 0.2 ln (5/3)
    assert stability(expected, expected) == 0
    assert stability(np.array([0, 10]), np.array([10, 0])) < 10, "a share of nothing is no infinity"


def test_what_moved_is_named_with_its_shares():
    found = compare(night(200, 50, 50), [night(), night()], SETTINGS, NAMES)
    assert (found["nights"], found["volume"]) == (2, None), "two nights have no median to lean on"
    assert found["moved"][0] == ["ant", 0.3333, 0.6667]
    (said,) = objections(found, SETTINGS)
    assert "the labels are others than in the 2 nights before: population stability index 0.4" in said
    assert "ant 33.3% -> 66.7%, bee 33.3% -> 16.7%" in said


@pytest.mark.parametrize("size", [40, 100, 1000])
def test_nights_of_one_distribution_are_rarely_held(size):
    """Of 100 pairs of nights drawn from the same 50 classes about one is above its noise, however few images there are."""
    random, shares = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.ones(50))
    settings = CheckSettings(max_psi=0.1, min_images=10)
    held = 0
    for _ in range(100):
        drawn = [random.multinomial(size, shares) for _ in range(2)]
        sides = [Night(size, 0, {str(k): int(v) for k, v in enumerate(d)}, bins((10, size))) for d in drawn]
        held += bool(objections(compare(sides[0], [sides[1]], settings), settings))
    assert held <= 5


def test_a_shift_is_found_where_the_bare_index_would_drown_in_noise():
    random, shares = np.random.default_rng(0), np.random.default_rng(1).dirichlet(np.ones(50))
    moved = np.roll(shares, 25)
    sides = [random.multinomial(300, each) for each in (moved, shares)]
    nights = [Night(300, 0, {str(k): int(v) for k, v in enumerate(d)}, bins((10, 300))) for d in sides]
    found = compare(nights[0], [nights[1]], CheckSettings())
    assert found["psi"] > 2 * found["psi_noise"] > 0.1


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (
            night(20, 20, 20),
            "60 new images are 0.20 times the median of the 3 nights before, less than checks.min_volume = 0.5",
        ),
        (night(300, 300, 300), "900 new images are 3.00 times the median .* more than checks.max_volume = 2"),
        (night(confidence=10), r"the mean confidence is 0\.525, and was 0\.775 .* checks.max_confidence_shift = 0\.05"),
        (night(confidence=18), r"the mean confidence is 0\.925"),
        (night(), None),
        (night(confidence=15, bad=200), None),
    ],
)
def test_bounds_are_held_to(now, words):
    said = objections(compare(now, [night(), night(), night()], SETTINGS), SETTINGS)
    if words is None:
        assert said == []
    else:
        assert len(said) == 1
        assert re.search(words, said[0]), said


def test_without_bounds_all_is_measured_and_nothing_held():
    found = compare(night(300, 0, 0, confidence=3), [night()], CheckSettings())
    assert found["psi"] > 1
    assert objections(found, CheckSettings()) == []


@pytest.mark.parametrize(
    ("now", "before"), [(night(), []), (night(10, 10, 10), [night()]), (night(), [night(1, 1, 1)])]
)
def test_too_little_to_compare_is_not_compared(now, before):
    found = compare(now, before, SETTINGS)
    assert (found["psi"], found["confidence_noise"]) == (None, None)
    assert not [said for said in objections(found, SETTINGS) if "labels" in said or "confidence" in said]


def test_a_night_of_nothing_is_no_error():
    found = compare(Night(0, 0, {}, []), [night()] * 3, SETTINGS)
    assert (found["volume"], found["bad"], found["confidence"]) == (0.0, None, None)


def test_runs_of_one_date_are_one_night():
    records = [
        {"date": "2026-11-24", "started_at": "2026-11-24T01:00:00", "night": night().to_json()},
        {"date": "2026-11-24", "started_at": "2026-11-24T05:00:00", "night": night(1, 1, 1).to_json()},
        {"date": None, "started_at": "2026-11-25T01:00:00", "night": night(2, 2, 2).to_json()},
    ]
    assert [each.images_in for each in by_date(records)] == [303, 6]


def test_a_multi_label_night_that_says_nothing_is_no_error():
    silent = Night(300, 0, {}, bins((2, 300)))
    for now, before in ((silent, night()), (night(), silent), (silent, silent)):
        found = compare(now, [before], SETTINGS)
        assert found["psi"] is None
        assert found["confidence_noise"] is not None
