import base64
import io
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from markupsafe import escape
from PIL import Image

from pipeline.corruptions import by_name
from pipeline.documents import encode
from pipeline.gallery import PICTURES, _Pictures, gather, quarantined, sample_predictions, thumbnail
from pipeline.images import decode
from pipeline.labelling import Labeller
from pipeline.page import PageData, render
from pipeline.rows import ShardReader
from pipeline.tables import read_table
from pipeline.transforms import Transforms


def run_of(night, config, version: str | None = None, **values) -> dict:
    run = {"run_id": "night-1", "command": "label", "dataset": config.dataset, "model": None, "fingerprint": None}
    if version:
        run |= {"model": f"tiny@{version}", "fingerprint": night.task(config, version).generation.fingerprint}
    return run | values


def page_of(night, config, version: str | None = None, **values) -> PageData:
    return gather(night.store, run_of(night, config, version, **values), config.input, config.storage)


@pytest.fixture
def labelled(night):
    """Forty labelled images in two shards, and three bad ones."""
    night.write("a.parquet", list(range(30)))
    bad = [b"bad", None, b""]
    night.write("b.parquet", list(range(30, 43)), image=pa.array([*map(night.png, range(10)), *bad], pa.binary()))
    config, version = night.config(input={"shard_images": 30}), night.seal()
    return night, config, version, night.whole(config, version)


def test_page_shows_what_the_label_files_hold(labelled):
    night, config, version, view = labelled
    page = page_of(night, config, version)
    rows = [row for path in view.files for row in read_table(night.store, path).to_pylist()]
    assert dict(page.label_counts) == Counter(row["label"] for row in rows)
    assert page.confidence_counts == tuple(np.histogram([row["confidence"] for row in rows], 20, (0, 1))[0])
    assert sum(page.confidence_counts) == len(rows) == 40
    assert dict(page.quarantine_reasons) == {"not_an_image": 1, "null": 1, "empty": 1}
    assert sorted(row["image_id"] for row in page.quarantine) == [40, 41, 42]

    by_confidence = sorted(rows, key=lambda row: row["confidence"])
    assert [image.image_id for image in page.least_confident] == [str(r["image_id"]) for r in by_confidence[:PICTURES]]
    most = [str(row["image_id"]) for row in by_confidence[::-1][:PICTURES]]
    assert [image.image_id for image in page.most_confident] == most
    shown = page.least_confident + page.most_confident
    assert all(image.data_uri.startswith("data:image/") for image in shown)
    assert shown[0].top == tuple((best["label"], best["probability"]) for best in by_confidence[0]["top_k"])
    assert render(page)


@pytest.mark.parametrize("damage", ["gone", "shorter", "garbage", "other columns"])
def test_images_that_are_gone_have_blank_thumbnails(labelled, damage):
    night, config, version, _ = labelled
    for path in night.data.glob("*.parquet"):
        if damage == "gone":
            path.unlink()
        elif damage == "garbage":
            path.write_bytes(b"no table")
        elif damage == "shorter":
            night.write(path.name, [])
        else:
            shutil.copy(night.store.url + "/" + next(iter(night.store.list("labels"))).path, path)
    page = page_of(night, config, version)
    shown = page.least_confident + page.most_confident
    assert len(shown) == 2 * PICTURES
    assert {image.data_uri for image in shown} == {""}
    assert render(page).count("no preview") == 2 * PICTURES


def test_run_with_nothing_is_a_page_without_sections(night):
    page = page_of(night, night.config())
    assert page == PageData(page.run, (), (), (), (), None, None, (), (), ())
    assert "night-1" in render(page)


def test_run_that_labelled_nothing_is_a_page_too(night):
    night.write("a.parquet", [1])
    config, version = night.config(), night.seal()
    night.plan(config)
    page = page_of(night, config, version, labelled=0, quarantined=0, images_in=0)
    assert (page.label_counts, page.confidence_counts, page.least_confident) == ((), (), ())
    assert render(page)


def test_html_in_ids_and_messages_is_escaped(night):
    evil = "<script>alert('id')</script>"
    night.write("a.parquet", [evil, f"{evil}2"], image=pa.array([night.png(), b"<b>bad</b>"], pa.binary()))
    config, version = night.config(), night.seal()
    night.whole(config, version)
    document = render(page_of(night, config, version))
    assert "<script" not in document
    assert "<b>bad" not in document
    assert escape(f"{evil}2") in document


def test_rows_of_vanished_files_are_not_shown_as_if_alive(labelled):
    night, config, version, _ = labelled
    night.write(
        "c.parquet", [50, 51, 52, 53, 54], image=pa.array([night.png(50), b"x", b"y", *map(night.png, (53, 54))])
    )
    config = night.config(input={"shard_images": 30, "name": "grown"})
    night.whole(config, version)  # b and c share a shard here
    before = page_of(night, config, version)
    (night.data / "b.parquet").unlink()
    night.plan(config)
    after = page_of(night, config, version)
    assert (sum(n for _, n in before.label_counts), sum(n for _, n in after.label_counts)) == (43, 33)
    assert (sum(before.confidence_counts), sum(after.confidence_counts)) == (43, 33)
    assert dict(before.quarantine_reasons) == {"not_an_image": 3, "null": 1, "empty": 1}
    assert dict(after.quarantine_reasons) == {"not_an_image": 2}
    assert [row["image_id"] for row in after.quarantine] == [51, 52]
    gone = {str(n) for n in range(30, 43)}
    assert not gone & {image.image_id for image in after.least_confident + after.most_confident}
    assert all(image.data_uri for image in after.least_confident + after.most_confident)


def test_labels_that_outlive_their_model_go_by_class_number(labelled):
    night, config, version, _ = labelled
    named = dict(page_of(night, config, version).label_counts)
    shutil.rmtree(f"{night.store.url}/models")
    numbered = dict(page_of(night, config, version).label_counts)
    assert numbered == {f"class {('ant', 'bee', 'cat').index(name)}": n for name, n in named.items()}


def test_a_spoilt_image_is_shown_as_the_model_was_given_it(labelled):
    night, config, version, _ = labelled
    row = next(ShardReader(config.input, config.storage).read(night.plan(config).shards[0]))[0]
    example = {
        "uri": row.uri,
        "image_id": "1",
        "label": "ant",
        "key": row.content_hash,
        "said": {"border": ["ant", "bee"]},
    }
    robustness = {"example": example, "severities": [1, 2], "corruptions": [{"name": "border"}]}
    pictures = _Pictures(ShardReader(config.input, config.storage), 10**6)
    [(name, shown)] = pictures.spoilt(robustness, night.store, "tiny", version)
    assert (name, [picture.said for picture in shown]) == ("border", ["ant", "bee"])
    clean = Transforms(8, 8, "L", (0.5,), (0.5,)).pixels(decode(row.data, "L", 10**6).image)
    expected = by_name()["border"](clean, 2, row.content_hash)[:, :, 0]
    with Image.open(io.BytesIO(base64.b64decode(shown[1].data_uri.partition(",")[2]))) as image:
        assert np.array_equal(np.asarray(image.resize((8, 8), Image.Resampling.NEAREST)), expected)
    gone = robustness | {"example": example | {"uri": "nothing.parquet#1"}}
    assert list(pictures.spoilt(gone, night.store, "tiny", version)) == []


def test_evaluation_and_curves_of_the_model_are_shown_for_its_own_data_set_only(labelled):
    night, config, version, _ = labelled
    wrong = {"image_id": 3, "uri": "a.parquet#3", "label": "ant", "predicted": "bee", "confidence": 0.75}
    evaluation = {"dataset": "data", "misclassified": [wrong, {**wrong, "image_id": 4, "uri": "a.parquet#999"}]}
    night.store.write(f"models/tiny/{version}/evaluation.json", encode(evaluation))
    night.store.write(f"models/tiny/{version}/training.json", encode({"history": [{"epoch": 1, "train_loss": 0.5}]}))
    page = page_of(night, config, version)
    assert page.evaluation == evaluation
    assert page.training == {"history": [{"epoch": 1, "train_loss": 0.5}]}
    first, second = page.misclassified
    assert (first.image_id, first.top, first.truth) == ("3", (("bee", 0.75),), "ant")
    assert first.data_uri
    assert second.data_uri == ""
    night.store.write(f"models/tiny/{version}/evaluation.json", encode(evaluation | {"dataset": "another"}))
    assert page_of(night, config, version).evaluation is None


def test_samples_go_from_the_least_confident_to_the_middle(labelled):
    night, _, _, view = labelled
    table = read_table(night.store, view.files[0]).sort_by("confidence")
    samples = sample_predictions(night.store, view.files, 5)
    assert [image_id for image_id, _ in samples] == [str(i) for i in table["image_id"].to_pylist()[:15:3]]
    assert sample_predictions(night.store, [], 5) == []


def test_quarantined_rows_stop_at_the_limit(labelled):
    night, _, _, view = labelled
    files = view.document["quarantine_files"]
    assert [row["image_id"] for row in quarantined(night.store, files, 2)] == [40, 41]
    assert len(quarantined(night.store, files * 2, 10)) == 6


@pytest.mark.parametrize(
    ("size", "shown", "kind"),
    [((8, 8), (160, 160), "PNG"), ((60, 30), (120, 60), "PNG"), ((400, 200), (160, 80), "JPEG")],
)
def test_thumbnails_are_about_160_pixels_and_tiny_pictures_keep_hard_edges(png, size, shown, kind):
    original = Image.open(io.BytesIO(png(1, size)))
    head, _, body = thumbnail(original).partition(",")
    small = Image.open(io.BytesIO(base64.b64decode(body)))
    assert (head, small.format, small.size) == (f"data:image/{kind.lower()};base64", kind, shown)
    if kind == "PNG":
        factor = shown[0] // size[0]
        assert np.array_equal(np.asarray(small)[::factor, ::factor], np.asarray(original))


def test_run_that_labelled_is_shown_its_own_shards_and_a_run_without_work_all_of_them(labelled):
    night, config, version, _ = labelled
    again, plan = replace(night.task(config, version), run_id="night-2"), night.plan(config)
    Labeller(again)(plan.shards[1])
    seen = {
        (run_id, images_in): sum(page_of(night, config, version, run_id=run_id, images_in=images_in).confidence_counts)
        for run_id, images_in in (("night-1", 30), ("night-2", 13), ("night-3", 0))
    }
    assert seen == {("night-1", 30): 30, ("night-2", 13): 10, ("night-3", 0): 40}
