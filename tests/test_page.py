import html
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.page import (
    PageData,
    Thumbnail,
    curves,
    duration,
    flat,
    matrix,
    moment,
    percent,
    rate,
    render,
    speak,
    ticks,
    tried,
)

EVIL = "<script>alert(1)</script>"
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EMPTY = PageData({"run_id": "r1"}, (), (), (), (), None, None, (), (), ())


def thumbnail(image_id: str = "cat-1", truth: str | None = "dog") -> Thumbnail:
    return Thumbnail(image_id, PIXEL, f"/data/{image_id}.gif", (("cat", 0.82), ("dog", 0.15)), truth)


def evaluation(names: list[str]) -> dict:
    confusion = [[k, k, 8] for k in range(len(names))] + [[0, 1, 2]]
    rows = [
        {
            "class_index": k,
            "label": name,
            "support": 8,
            "predicted": 8,
            "precision": None,
            "recall": 1.0,
            "f1": 1 - k / 999,
        }
        for k, name in enumerate(names)
    ]
    return {
        "split": "test", "model": "m", "version": "1", "num_images": 8 * len(names) + 2, "top1": 0.9, "top5": 1.0,
        "loss": 0.25, "interval95": [0.8, 0.95], "classes": names, "per_class": rows, "confusion": confusion,
        "misclassified": [], "num_misclassified": 2, "quarantined": 0, "unknown_labels": {"zebra": 3},
    }  # fmt: skip


FOLDS = {
    "folds": [{"fold": n, "num_val": 10, "val_top1": 0.5, "val_loss": 1.0} for n in range(3)],
    "mean": {"val_top1": 0.903, "val_loss": 0.41}, "deviation": {"val_top1": 0.011, "val_loss": 0.021},
}  # fmt: skip


def tuning(word: str) -> dict:
    trials = [
        {
            "trial": f"{word}{n}", "state": state, "epochs": 3, "score": score, "val_loss": score, "val_top1": 0.9,
            "values": {"train.rate": 10.0 ** -(n + 1), "train.kind": word},
        }
        for n, (state, score) in enumerate((("finished", 0.1), ("finished", 0.2), ("running", 0.3), ("running", 1e6), ("diverged", None)))
    ]  # fmt: skip
    space = {"train.rate": {"min": 1e-5, "max": 1.0, "log": True, "whole": False}, "train.kind": [word, "dog"]}
    return {"metric": "val_loss", "space": space, "trials": trials, "epochs": 3, "border": {"train.rate": "upper"}}


def robustness(word: str) -> dict:
    rows = [
        {
            "challenge": challenge, "name": name, "flips": [0.1, 0.2], "mean_flips": 0.15, "error": [0.25, 0.75], "mean_error": 0.5,
            "relative": 5.0,
        }
        for challenge, name in (("scale", "zoom_in"), ("scale", "zoom_out"), (word, word))
    ]  # fmt: skip
    example = {"image_id": word, "label": word, "said": {"clean": [word], word: [word, "dog"]}}
    return {
        "model": word, "version": "1", "split": word, "num_images": 100, "clean_error": 0.1, "clean_interval95": [0.05, 0.2],
        "severities": [1, 2], "quarantined": 3, "corruptions": rows, "example": example,
    }  # fmt: skip


def night(word: str = "cat") -> PageData:
    """Return a full page whose every text carries `word`."""
    run = {
        "run_id": word, "command": f"nightshift nightly {word}", "dataset": word, "started_at": "2026-11-24T02:00:00Z",
        "finished_at": "2026-11-24T02:02:14Z", "seconds": 134, "images_in": 12345, "labelled": 12300, "quarantined": 45,
        "skipped": 7, "failed_shards": 1, "failures": [{"shard": word, "error": word, "kind": word, "attempts": 3}],
        "failed_files": [{"path": word, "error": word}], "images_per_s": 91.79, "model": word, "fingerprint": word,
        "exit_code": 3, "outcome": f"Finished with {word}.", "view": 4, "versions": {word: word},
        "date": word, "remaining": 256, "changes": {"new": 9000, "changed": 21, "deleted": 3}, "retries": {word: 1200},
        "engines": [
            {
                "engine": word, "precision": word, "device": word, "decoding": word, "images": 12345,
                "agreement": {"photos": 64, "top1": 0.984375, "difference": 0.00412, "cosine": 0.99987},
            }
        ],
        "time_shares": {"decode": 0.61, "engine": 0.3, word: 0.09},
        "review": {"path": word, "below": 0.6, "num_below": 2000, "rows": 1000},
        "promotion": {"better": 30, "worse": 6, "p": 0.00003}, "tuning": tuning(word), "folds": FOLDS, "robustness": robustness(word),
        "stages": [{"name": word, "seconds": 2.0, "images": 10}], "config": {word: {word: [word]}},
    }  # fmt: skip
    bad = dict.fromkeys(("image_id", "uri", "stage", "reason", "error_type", "message"), word)
    images = (Thumbnail(word, PIXEL, word, ((word, 0.9), ("other", 0.1)), word),)
    history = tuple({"epoch": e, "train_loss": 1 / e, "train_top1": 1 - 0.5 / e, "val_loss": None} for e in (1, 2, 3))
    training = {
        "history": history, "sealed_epoch": 2,
        "overfitting": {"gap": 0.081, "training": 0.991, "validation": 0.91, "worse_since": 2, "epoch": 2},
    }  # fmt: skip
    slices = [
        {
            "column": word,
            "value": value,
            "num_images": 10,
            "share": 0.5,
            "interval95": [0.2, 0.8],
            "worse": value == word,
        }
        for value in (word, "day")
    ]
    report = evaluation([word, "dog"]) | {
        "model": word, "unknown_labels": {word: 1}, "split": word, "slices": slices, "looks": 7,
        "confused": [{"label": word, "predicted": "dog", "num_images": 2, "share": 0.2}],
    }  # fmt: skip
    counts = ((word, 12000), ("dog", 300))
    return PageData(
        run,
        counts,
        (*(0,) * 18, 3300, 9000),
        (bad,),
        ((word, 45),),
        report,
        training,
        images,
        images,
        images,
        ((word, (Thumbnail(word, PIXEL, "", (), word, word), Thumbnail(word, PIXEL, "", (), word, "dog"))),),
    )


def attribute_names(document: str) -> set[str]:
    names: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: names.update(name for name, _ in attrs)  # type: ignore[method-assign]
    parser.feed(document)
    return names


def headings(document: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", document)


def said(document: str) -> str:
    """Return the words of a page, in its order."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", document, flags=re.DOTALL)))


@pytest.mark.parametrize(
    "words",
    [
        "Waiting for the next run 256 images", "For the date cat", "since the last plan 9,000 new, 21 changed, 3 deleted",
        "Tried again 1,200 x cat", "2,000 labels with a confidence below 0.6, of which the 1,000 least confident",
        "cat cat cat decoding cat 12,345 98.4% of 64 0.0041 cosine 0.9999", "Decoding 61.0% Model 30.0% cat 9.0%",
        "Shard Kind Tries Error cat cat 3 cat", "File Error cat cat",
    ],
)  # fmt: skip
def test_page_says_what_the_run_met(words: str) -> None:
    assert words in said(render(night()))


@pytest.mark.parametrize(
    "words",
    [
        "Looks at this test set 7", "True label Taken for Images Of its images cat dog 2 20.0%",
        "cat cat 10 ↓ 50.0% 20.0% to 80.0% cat day 10 50.0% 20.0% to 80.0%",
        "Beside production better on 30 images, worse on 6, by chance alone 3e-05",
        "train.rate : the best value lies at the upper end of what was tried",
        "cat0 0.1 cat 3 0.100 90.0% finished", "cat2 0.001 cat 3 0.300 90.0% stopped early", "cat4 1e-05 cat 3 — 90.0% diverged",
        "Accuracy, top 1 90.3% ± 1.1 points", "3 10 50.0% 1.000", "Clean error 10.0% (5.0% to 20.0%)",
        "scale zoom in 25% 75% 50.0% 5.0 x 15.0% zoom out 25% 75% 50.0% 5.0 x 15.0%", "truth: cat; clean: cat",
        "those of epoch 2, which is sealed", "Training 75.0%", "epoch 2 is sealed",
        "Overfitting gap: 8.1 points. What was trained on is right in 99.1%, validation images in 91.0%. The validation loss "
        "rises since epoch 2",
    ],
)  # fmt: skip
def test_page_says_how_good_the_model_is(words: str) -> None:
    assert words in said(render(night()))


def test_page_of_an_older_record_leaves_out_what_it_does_not_say() -> None:
    run = night().run
    for key in ("date", "remaining", "changes", "retries", "engines", "time_shares", "review"):
        del run[key]
    run["failures"] = [{"shard": "s", "error": "e"}]
    document = said(render(replace(night(), run=run)))
    assert "Shard Error s e" in document
    for words in ("Tried again", "Engine ", "what to buy more of", "looked at", "since the last plan", "For the date"):
        assert words not in document


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ([("cat", 0.82), ("dog", 0.15), ("hat", 0.02), ("mug", 0.01)], "82% cat, 15% dog, 2% hat, 1% mug"),
        ([("cat", 0.996), ("dog", 0.004)], "100% cat"),
        ([("cat", 0.003), ("dog", 0.002)], "0% cat"),
        ([("cat", 0.5), ("dog", 0.0051)], "50% cat, 1% dog"),
        ([], ""),
    ],
)
def test_speak_leaves_out_what_reads_zero_except_the_first(top: list[tuple[str, float]], said: str) -> None:
    assert speak(top) == said


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (percent, 0.96944, "96.9%"), (percent, 0.9999, ">99.9%"), (percent, 1, "100%"), (percent, 0, "0%"),
        (percent, 0.0001, "<0.1%"), (percent, None, "—"), (percent, float("nan"), "—"),
        (duration, 0.84, "0.8 s"), (duration, 9.96, "10 s"), (duration, 59.7, "1 min 0 s"),
        (duration, 134, "2 min 14 s"), (duration, 9134, "2 h 32 min"), (duration, 300_000, "3 d 11 h"),
        (duration, None, "—"),
        (rate, 1234.5, "1,234"), (rate, 61.34, "61.3"), (rate, 0.456, "0.46"), (rate, None, "—"),
        (moment, "2026-11-24T02:05:00Z", "24 Nov 2026, 02:05 UTC"),
        (moment, "2026-11-24T02:05:00", "24 Nov 2026, 02:05 UTC"),
        (moment, "2026-11-24T04:05:00+02:00", "24 Nov 2026, 02:05 UTC"), (moment, "last night", "last night"),
    ],
)  # fmt: skip
def test_values_are_written_for_people(write, value, text) -> None:
    assert write(value) == text


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 2.3, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0.61, 0.97, [0.6, 0.7, 0.8, 0.9, 1.0]),
        (0, 0, [0]),
        (1, 20, [0, 5, 10, 15, 20]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, marks: list[float]) -> None:
    assert ticks(low, high) == marks


def test_nested_settings_are_listed_as_dotted_keys() -> None:
    config = {"input": {"url": "/data", "columns": []}, "train": {"model": {"depth": 2}}, "storage": {}, "seed": None}
    assert list(flat(config)) == [
        ("input.url", "/data"), ("input.columns", "[]"), ("train.model.depth", "2"), ("storage", "{}"),
        ("seed", "null"),
    ]  # fmt: skip


def test_curves_skip_epochs_without_a_value_and_charts_without_any() -> None:
    history = (
        {"epoch": 1, "train_loss": 2.0, "val_loss": None},
        {"epoch": 2, "train_loss": float("nan"), "val_loss": 1.0},
    )
    assert curves(history) == [("Loss", {"Training": [(1, 2.0)], "Validation": [(2, 1.0)]})]


def test_epochs_may_start_at_zero_or_go_unnamed() -> None:
    assert curves(({"epoch": 0, "train_loss": 2.0}, {"epoch": 1, "train_loss": 1.0}))[0][1]["Training"][0] == (0, 2.0)
    assert curves(({"train_loss": 2.0}, {"train_loss": 1.0})) == [("Loss", {"Training": [(1, 2.0), (2, 1.0)]})]


def test_matrix_has_true_classes_as_rows_and_shares_of_each_row() -> None:
    rows = matrix({"classes": ["cat", "dog"], "confusion": [[0, 0, 3], [0, 1, 1]]})
    assert rows == [("cat", 4, [(3, 0.75), (1, 0.25)]), ("dog", 0, [(0, 0.0), (0, 0.0)])]


def test_nothing_from_the_data_becomes_markup() -> None:
    hostile = f"""{EVIL}"'><img src=x onerror=alert(1)>"""
    document = render(night(hostile))
    assert html.escape(EVIL) in document
    assert "<script" not in document
    assert "<img src=x" not in document
    assert not [name for name in attribute_names(document) if name.startswith("on")]


def test_page_asks_for_nothing_from_the_network() -> None:
    document = render(night("s3://bucket/cat"))
    sources = re.findall(r'(?:src|href|action|data)="([^"]*)"', document)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert "default-src 'none'" in document
    assert "url(" not in document
    assert "@import" not in document


def test_thumbnail_that_is_not_a_data_image_is_not_loaded() -> None:
    image = replace(thumbnail(), data_uri="https://example.com/cat.png")
    document = render(replace(EMPTY, least_confident=(image,)))
    assert "example.com" not in document
    assert "no preview" in document


def test_tags_are_balanced() -> None:
    class Balance(HTMLParser):
        void = frozenset({"meta", "link", "img"})

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in self.void:
                stack.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert stack.pop() == tag, (tag, self.getpos())

    for document in (render(night()), render(EMPTY), render(replace(night(), evaluation=evaluation(list("abc" * 20))))):
        stack: list[str] = []
        Balance().feed(document)
        assert stack == []


def test_full_run_shows_every_section_and_the_four_numbers() -> None:
    document = render(night())
    assert headings(document) == [
        "Failures", "The run", "Labels", "Accuracy", "Robustness", "Tuning", "Cross-validation", "Learning", "Images", "Quarantine",
        "Settings",
    ]  # fmt: skip
    assert re.findall(r'class="value">(.*?)<', document) == ["12,300", "45", "91.8", "90.0%"]
    assert "95% interval 80.0% to 95.0%" in document
    assert "2 min 14 s" in document


def test_run_with_only_an_id_is_still_a_page() -> None:
    document = render(EMPTY)
    assert headings(document) == ["The run"]
    assert "Unknown outcome" in document
    assert "tile" not in document.split("<main>")[1]


@pytest.mark.parametrize("absent", ["dropped", "none"])
@pytest.mark.parametrize("part", ["run", "evaluation", "quarantine", "training"])
def test_any_absent_key_leaves_the_rest_of_the_page(part: str, absent: str) -> None:
    rows = getattr(night(), part)
    row = rows if isinstance(rows, dict) else rows[0]
    for key in row:
        changed = row | {key: None} if absent == "none" else {name: value for name, value in row.items() if name != key}
        document = render(replace(night(), **{part: changed if isinstance(rows, dict) else (changed,)}))
        assert "Settings" in document or key in ("config", "versions"), key


def test_train_only_run_says_nothing_about_labelling() -> None:
    run = {"run_id": "r1", "exit_code": 0, "labelled": 0, "quarantined": 0, "images_in": 0, "view": None}
    document = render(
        replace(night(), run=run, label_counts=(), confidence_counts=(), quarantine=(), quarantine_reasons=())
    )
    assert headings(document) == ["The run", "Accuracy", "Learning", "Images"]
    assert re.findall(r'class="value">(.*?)<', document) == ["90.0%", "3"]
    assert "published" not in document


def test_mistakes_without_thumbnails_become_a_table() -> None:
    wrong = {"image_id": "cat-77", "uri": "u", "label": "cat", "predicted": "dog", "confidence": 0.6}
    document = render(replace(EMPTY, evaluation=evaluation(["cat", "dog"]) | {"misclassified": [wrong]}))
    assert "cat-77" in document


def test_misclassified_image_is_never_called_right() -> None:
    twin = replace(thumbnail(), truth="cat")  # ImageNet has two classes called crane
    assert "✓ right" not in render(replace(EMPTY, misclassified=(twin,)))
    assert "✓ right" in render(replace(EMPTY, most_confident=(twin,)))


@pytest.mark.parametrize(("num_classes", "drawn"), [(2, True), (30, True), (31, False), (1000, False)])
def test_confusion_is_a_matrix_up_to_thirty_classes_and_pairs_beyond(num_classes: int, drawn: bool) -> None:
    pair = {"label": "c0", "predicted": "c1", "num_images": 2, "share": 0.2}
    judged = evaluation([f"c{k}" for k in range(num_classes)]) | {"confused": [pair] * 20}
    document = render(replace(EMPTY, evaluation=judged))
    assert ("Confusion matrix" in document) == drawn
    assert document.count("<td>c1</td>") == (5 if drawn else 20)
    assert ("lowest F1" in document) == (not drawn)
    assert len(document) < 150_000


def test_label_distribution_stops_at_thirty_bars_and_counts_the_rest() -> None:
    counts = tuple((f"label{k}", 1000 - k) for k in range(45))
    document = render(replace(EMPTY, label_counts=counts))
    assert document.count('class="bar"') == 30
    assert "and 15 more, with 14,445 images together" in document


@pytest.mark.parametrize(
    ("exit_code", "badge"),
    [
        (0, "Complete"),
        (1, "Failed"),
        (2, "Not started"),
        (3, "Needs attention"),
        (4, "Nothing new"),
        (5, "Stopped early"),
    ],
)
def test_badge_names_the_exit_code(exit_code: int, badge: str) -> None:
    document = render(replace(EMPTY, run={"run_id": "r1", "exit_code": exit_code, "outcome": "What happened."}))
    assert f"</span> {badge}</span> <span>What happened.</span>" in document


@pytest.mark.parametrize(
    "history", [({"epoch": 1, "train_loss": 0.0, "train_top1": 1.0},), ({"train_loss": 1e9},) * 60]
)
def test_degenerate_histories_can_be_drawn(history: tuple[dict, ...]) -> None:
    document = render(replace(EMPTY, training={"history": history}))
    assert "nan" not in re.findall(r"<svg viewBox.*?</svg>", document, re.DOTALL)[-1]


def test_every_image_and_chart_has_a_text_alternative() -> None:
    document = render(replace(night(), spoilt=()))
    assert all('alt="Image cat: 90% cat' in tag for tag in re.findall(r"<img [^>]*>", document))
    assert all("aria-label=" in tag or "aria-hidden=" in tag for tag in re.findall(r"<svg [^>]*>", document))
    assert all("scope=" in tag for tag in re.findall(r"<th[ >][^>]*", document))


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_page_does_not_scroll_sideways(tmp_path: Path, width: int) -> None:
    long = replace(
        night("a_dataset_name_of_some_length_without_any_space_2026-11-24"), evaluation=evaluation(["Terrier"] * 30)
    )
    page = html.escape(render(long).replace("<details>", "<details open>"))
    (tmp_path / "frame.html").write_text(
        f'<iframe style="width:{width}px;height:9000px;border:0" srcdoc="{page}"></iframe><p id="out"></p><script>'
        'let frame = document.querySelector("iframe");'
        "frame.onload = () => { let root = frame.contentDocument.documentElement;"
        'document.getElementById("out").textContent = `spills ${root.scrollWidth - root.clientWidth} px` }</script>'
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, *flags, "--disable-sync", profile, "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=60)
    assert "spills 0 px" in done.stdout


def test_reliability_and_coverage_are_drawn_of_any_number_of_points():
    for num in (1, 19, 20, 41, 100):
        points = [{"confidence": k / num, "coverage": 1 - k / num, "accuracy": 0.5 + k / 2 / num} for k in range(num)]
        bins = [{"num_images": k + 1, "confidence": k / 15, "accuracy": k / 20} for k in range(15)]
        report = evaluation(["cat", "dog"]) | {"calibration": {"ece": 0.034, "bins": bins}, "coverage": points}
        document = render(replace(night(), evaluation=report))
        assert "3.4% apart" in said(document)
        assert document.count(" of the images, ") >= min(num, 20)
        assert "6.7% sure: 5.0% of 2 right" in document
    assert "Reliability" not in said(render(night()))


def test_trials_are_drawn_where_their_values_are() -> None:
    [(key, marks, points)] = tried(tuning("cat"))
    assert key == "train.rate"
    assert [name for _, name in marks] == ["1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]
    assert [round(place, 6) for place, _ in marks] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert [round(place, 6) for place, _, _ in points] == [0.8, 0.6, 0.4, 0.2]
    assert [score for _, score, _ in points] == [0.1, 0.2, 0.3, 0.7]  # a million would flatten the others


def test_a_plain_range_has_round_marks() -> None:
    changed = tuning("cat")
    changed["space"]["train.rate"] = {"min": 0.0, "max": 0.1, "log": False, "whole": False}
    assert [name for _, name in tried(changed)[0][1]] == ["0", "0.05", "0.1"]


def test_robustness_without_labels_shows_flips() -> None:
    unlabelled = robustness("cat") | {"clean_error": None, "clean_interval95": None}
    unlabelled["corruptions"] = [
        row | {"error": None, "mean_error": None, "relative": None} for row in unlabelled["corruptions"]
    ]
    document = said(render(replace(EMPTY, run={"run_id": "r1", "robustness": unlabelled})))
    assert "scale zoom in 10% 20% 15.0% 15.0%" in document
    assert "Clean error" not in document


def test_trials_are_not_drawn_better_than_they_are() -> None:
    changed = tuning("cat") | {"metric": "val_top1"}
    for trial, score in zip(changed["trials"], (1.0, 1.0, 1.0, 0.3, None), strict=True):
        trial["score"] = score
    assert [score for _, score, _ in tried(changed)[0][2]] == [1.0, 1.0, 1.0, 0.3]


def test_lists_of_numbers_are_drawn_too() -> None:
    changed = tuning("cat")
    changed["space"] = {"train.rate": [0.1, 0.01, 0.001, 0.0001]}
    assert [name for _, name in tried(changed)[0][1]] == ["0.0001", "0.001", "0.01", "0.1"]


def nights(count: int = 3) -> tuple[dict, ...]:
    return tuple(
        {
            "night": f"2026-11-{20 + n}", "run_id": f"night-{n}", "images_in": 100 * (n + 1), "bad": 0.01 * n,
            "psi": 0.1 * n if n else None, "confidence": 0.8, "images_per_s": 90.5, "cost": None,
            "ended": ("complete", "held back")[n % 2], "published": not n % 2,
        }
        for n in range(count)
    )  # fmt: skip


def test_nights_are_trends_with_what_was_held_hollow() -> None:
    document = render(replace(night(), nights=nights()))
    assert "Nights" in headings(document)
    section = document[document.index('id="nights"') : document.index('id="labels"')]
    assert re.findall(r"<h3>(.*?)</h3>", section) == [
        "New images", "Bad images", "Shift of the labels", "Mean confidence", "Images per second",
    ]  # fmt: skip
    assert section.count("<rect") == 3 + 3 + 2 + 3 + 3
    assert section.count('class="open"') == 5
    assert "2026-11-21, night-1: 200, held back" in section
    assert "Nights" not in headings(render(replace(night(), nights=nights(1)))), "one night is no trend"


def test_labels_that_moved_are_a_table_with_names_escaped() -> None:
    checks = {"nights": 1, "psi": 0.31, "psi_noise": 0.02, "moved": [[EVIL, 0.1, 0.4], ["cat", 0.9, 0.6]]}
    made = night()
    document = render(replace(made, run=made.run | {"checks": checks}))
    assert "against the 1 night before: population stability index 0.310, by chance up to 0.020" in document
    assert html.escape(EVIL) in document
    assert EVIL not in document
