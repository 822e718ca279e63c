import json

import pyarrow.parquet as pq
import pytest

from jobs.photo import label_photo
from pipeline.errors import InputError, ModelError
from pipeline.tables import read_table


def test_photo_gets_the_same_answer_as_in_the_batch_job(night, tmp_path, capsys):
    night.write("a.parquet", list(range(5)))
    config = night.config(label={"top_k": 2})
    view = night.whole(config, night.seal())
    for row in read_table(night.store, view.files[0]).to_pylist():
        data = pq.read_table(night.data / "a.parquet")["image"][row["image_id"]].as_py()
        (tmp_path / "photo.png").write_bytes(data)
        assert label_photo(config, str(tmp_path / "photo.png"), as_json=True) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["image_id"] == str(tmp_path / "photo.png")
        for key in ("label", "class_index", "width", "height", "model", "content_hash"):
            assert answer[key] == row[key]
        assert [best["label"] for best in answer["top_k"]][:2] == [best["label"] for best in row["top_k"]]
        assert len(answer["top_k"]) == 3  # all classes: a photo is shown its best five, whatever the batch job keeps
        for ours, theirs in zip(answer["top_k"][:2], row["top_k"], strict=True):
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-6)


def test_photo_is_answered_for_people(night, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(night.png())
    night.seal()
    before = sorted(entry.path for entry in night.store.list())
    label_photo(night.config(), str(tmp_path / "photo.png"), as_json=False)
    *lines, spoken = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[1] for line in lines) == ["ant", "bee", "cat"]
    assert sum(float(line.split()[0].rstrip("%")) for line in lines) == pytest.approx(100, abs=0.02)
    assert spoken.startswith(f"{float(lines[0].split()[0].rstrip('%')):.0f}% {lines[0].split()[1]}")
    assert sorted(entry.path for entry in night.store.list()) == before  # nothing is written


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.jpg", "No such file or directory; give the path of an image file"),
        ("folder", "Is a directory; give the path of an image file"),
        ("page.jpg", "not_an_image: not JPEG, PNG"),
        ("empty.jpg", "empty: the image has 0 bytes"),
        ("large.png", "too_large: 40 x 40 pixels, more than input.max_pixels = 1000"),
    ],
)
def test_what_is_no_photo_is_refused_with_its_path(night, tmp_path, name, words):
    night.seal()
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(night.png(0, (40, 40)))
    with pytest.raises(InputError) as caught:
        label_photo(night.config(input={"max_pixels": 1000}), str(tmp_path / name), as_json=False)
    assert f"--image {tmp_path / name}: " in str(caught.value)
    assert words in str(caught.value)


def test_store_without_a_model_says_what_to_do(night, tmp_path):
    (tmp_path / "photo.png").write_bytes(night.png())
    with pytest.raises(ModelError, match="the store has no model 'tiny' yet; run `nightshift train CONFIG`"):
        label_photo(night.config(), str(tmp_path / "photo.png"), as_json=False)
