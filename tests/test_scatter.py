import sys
from dataclasses import replace

import pytest
from PIL import Image

from pipeline.catalog import Entry, published
from pipeline.errors import UsageError
from pipeline.scatter import WELL_KNOWN, draw_accuracy, frontier

BASE = Entry("a", "V1", 224, 10, 100, 50.0)


def entries(*places):
    return [replace(BASE, builder=f"net{n}", multiply_adds=cost, top1=top1) for n, (cost, top1) in enumerate(places)]


def test_the_line_is_what_nothing_cheaper_beats():
    some = entries((300, 60.0), (100, 50.0), (200, 49.0), (100, 55.0), (400, 60.0), (50, None), (500, 61.0))
    assert [entry.builder for entry in frontier(some)] == ["net3", "net0", "net6"]
    assert frontier([]) == []


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_picture_is_drawn_into_folders_that_are_not_there_yet(tmp_path, suffix):
    path = tmp_path / "new" / f"models.{suffix}"
    draw_accuracy(list(published()), str(path))
    assert path.stat().st_size > 10_000
    if suffix == "png":
        with Image.open(path) as picture:
            assert picture.width > 1000
            assert len(picture.convert("RGB").getcolors(2**24)) > 50
    if suffix == "svg":
        text = path.read_text()
        assert "efficientnet_b0" in text
        assert sum(f"<!-- {name} -->" in text for name in WELL_KNOWN) >= 8


def test_what_cannot_be_drawn_says_why(tmp_path, monkeypatch):
    some = list(published())
    with pytest.raises(UsageError, match=r"--plot models: expected the name of a picture that ends in \.png"):
        draw_accuracy(some, "models")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="choose a place that can be written"):
        draw_accuracy(some, str(tmp_path / "file" / "models.png"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"needs matplotlib; pip install -e '\.\[plot\]'"):
        draw_accuracy(some, str(tmp_path / "models.png"))
