import pytest

from pipeline.intervals import wilson
from pipeline.robustsums import CLEAN, RobustSums, summarize_robustness

FOG = [("illumination", "fog")]


def sums(images, labelled, wrong, flips, example=None) -> RobustSums:
    found = RobustSums(images, labelled, 0)
    found.wrong.update(wrong)
    found.flips.update(flips)
    found.example = example
    return found


def test_shares_are_of_what_was_counted():
    counted = sums(20, 10, {CLEAN: 2, ("fog", 1): 4, ("fog", 2): 8}, {("fog", 1): 5, ("fog", 2): 10})
    found = summarize_robustness(counted, FOG, (1, 2))
    assert (found["clean_error"], found["clean_interval95"]) == (0.2, list(wilson(2, 10)))
    assert found["corruptions"] == [
        {
            "challenge": "illumination", "name": "fog", "flips": [0.25, 0.5], "mean_flips": 0.375, "error": [0.4, 0.8],
            "mean_error": pytest.approx(0.6), "relative": pytest.approx(3.0),
        }
    ]  # fmt: skip


def test_without_labels_flips_are_left():
    found = summarize_robustness(sums(4, 0, {}, {("fog", 1): 1}), FOG, (1,))
    assert (found["clean_error"], found["clean_interval95"]) == (None, None)
    assert (found["corruptions"][0]["error"], found["corruptions"][0]["relative"]) == (None, None)
    assert found["corruptions"][0]["flips"] == [0.25]


def test_no_multiple_of_nothing():
    assert summarize_robustness(sums(4, 4, {("fog", 1): 2}, {}), FOG, (1,))["corruptions"][0]["relative"] is None


def test_workers_add_up_and_the_example_is_the_same_for_any_order():
    def part(n):
        return sums(n, n, {CLEAN: 1}, {("fog", 1): n}, {"segment": f"s{n}", "position": n})

    one, other = part(1), part(1)
    one += part(2)
    total = part(2)
    total += other
    assert one == total
    assert (one.num_images, one.wrong[CLEAN], one.flips["fog", 1]) == (3, 2, 3)
    assert one.example == {"segment": "s1", "position": 1}
