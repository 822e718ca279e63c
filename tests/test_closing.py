"""Tests of what a run says at its end."""

import pytest

from jobs.closing import closing, spoken

AGREEMENT = {"photos": 64, "top1": 0.984375, "difference": 0.004}
ENGINE = {"engine": "openvino", "precision": "bf16", "device": "EPYC", "agreement": AGREEMENT, "images": 1000}
RECORD = {
    "command": "label", "model": "flowers@1", "images_in": 1000, "labelled": 998, "quarantined": 2, "skipped": 3000,
    "remaining": 0, "seconds": 75.2, "images_per_s": 20.04, "engines": [ENGINE], "retries": {}, "review": None,
    "time_shares": {"decode": 0.7, "engine": 0.3}, "exit_code": 0,
}  # fmt: skip


def test_a_good_run_says_its_books_its_engine_its_limit_and_what_is_next():
    assert closing(RECORD, "/store") == [
        "1,000 images in = 998 labelled + 2 quarantined; 3,000 were done before; took 1 min 15 s, 20/s while labelling",
        "engine: openvino bf16 on EPYC, the reference's label on 63 of 64 photos",
        "70% of the labellers' time went into decoding images: more CPUs would help most",
        "next: nightshift report CONFIG shows it as a page, nightshift labels CONFIG the labels",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images_in": 0, "seconds": 1}, "nothing was labelled; 3,000 images were done before"),
        ({"images_in": 0, "remaining": 1}, "nothing was labelled; 3,000 images were done before; 1 image remain"),
        (
            {"remaining": 50, "images_per_s": 3.14159, "seconds": 4.2},
            "1,000 images in = 998 labelled + 2 quarantined; 3,000 were done before; 50 images remain; "
            "took 4.2 s, 3.1/s while labelling",
        ),
        (
            {"retries": {"storage": 2, "worker": 9}, "time_shares": {}},
            "tried again: 9 x worker, 2 x storage",
        ),
        (
            {"retries": dict.fromkeys("abcdef", 1), "time_shares": {"engine": 1.0}},
            "100% of the labellers' time went into the model: more CPUs, a GPU or a smaller model would help most; "
            "tried again: 1 x a, 1 x b, 1 x c, 1 x d, ...",
        ),
        (
            {"review": {"path": "review/d/3.parquet", "below": 0.6, "num_below": 1, "rows": 1}},
            "to be looked at: 1 label with a confidence below 0.6: /store/review/d/3.parquet",
        ),
        (
            {"review": {"path": "review/d/3.parquet", "below": 0.6, "num_below": 2000, "rows": 1000}},
            "to be looked at: 2,000 labels with a confidence below 0.6, of which the 1,000 least confident: "
            "/store/review/d/3.parquet",
        ),
        (
            {"engines": [ENGINE, {"engine": "torch", "precision": "bf16", "device": "L4", "agreement": {}}]},
            "engine: openvino bf16 on EPYC, the reference's label on 63 of 64 photos; torch bf16 on L4",
        ),
    ],
)  # fmt: skip
def test_lines_say_what_there_is_to_say(changes, line):
    assert line in closing({**RECORD, **changes}, "/store")
    assert len(closing({**RECORD, **changes}, "/store")) <= 6


@pytest.mark.parametrize("changes", [{"command": "train"}, {"model": None}])
def test_other_commands_and_runs_that_never_got_to_labelling_say_nothing(changes):
    assert closing({**RECORD, **changes}, "/store") == []


@pytest.mark.parametrize("changes", [{"exit_code": 3}, {"command": "nightly"}])
def test_what_is_next_is_said_where_nothing_else_says_it(changes):
    assert not [line for line in closing({**RECORD, **changes}, "/store") if line.startswith("next:")]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_times_are_said_in_two_units(seconds, words):
    assert spoken(seconds) == words
