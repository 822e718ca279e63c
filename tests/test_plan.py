import json

import pytest

from pipeline.plans import read_plan


def test_a_plan_says_what_is_there_and_leaves_a_record(night, nightshift, local_ray):
    night.write("a.parquet", range(25))
    (night.data / "notes.txt").write_text("hello")
    ended = nightshift(night.config(input={"shard_images": 10}), "plan", "--run-id", "first")
    assert ended.code == 0
    assert "25 images in 3 shards, snapshot 1 of data" in ended.said
    assert "ignored: 1 other file" in ended.said
    assert (ended.record["command"], ended.record["images_in"], ended.record["failed_files"]) == ("plan", 0, [])
    assert [(stage["name"], stage["images"]) for stage in ended.record["stages"]] == [("plan", 25)]
    assert json.loads(night.store.read("runs/first/run.json")) == ended.record


def test_a_second_plan_is_unchanged_and_needs_no_session(night, nightshift, local_ray):
    night.write("a.parquet", range(25))
    nightshift(night.config(), "plan")
    local_ray.sessions = 0
    ended = nightshift(night.config(), "plan")
    assert ended.code == 0
    assert "25 images in 1 shard, unchanged since snapshot 1 of data" in ended.said
    assert local_ray.sessions == 0


def test_a_later_plan_says_what_is_new_changed_and_deleted(night, nightshift, local_ray):
    for number in range(10):
        night.write(f"{number}.parquet", range(number * 10, number * 10 + 10))
    first = nightshift(night.config(), "plan")
    assert first.record["changes"] == {"new": 100, "changed": 0, "deleted": 0}
    for number in range(10, 15):
        night.write(f"{number}.parquet", range(number * 10, number * 10 + 10))
    (night.data / "3.parquet").unlink()
    night.write("4.parquet", range(900, 911))
    ended = nightshift(night.config(), "plan")
    assert "new 51, changed 10, deleted 10 images" in ended.said
    assert ended.record["changes"] == {"new": 51, "changed": 10, "deleted": 10}
    unchanged = nightshift(night.config(), "plan")
    assert unchanged.record["changes"] == {"new": 0, "changed": 0, "deleted": 0}


def test_an_input_that_vanished_ends_with_3_and_says_how_to_go_on(night, nightshift, local_ray):
    path = night.write("a.parquet", range(25))
    nightshift(night.config(), "plan")
    path.unlink()
    ended = nightshift(night.config(), "plan")
    assert ended.code == 3
    assert "25 of 25 known images (100%) are gone" in ended.said
    assert read_plan(night.store, "data").n == 1
    meant = nightshift(night.config(), "plan", "--set", "input.max_vanished_fraction=1")
    assert (meant.code, read_plan(night.store, "data").num_images) == (0, 0)


def test_files_that_cannot_be_read_are_listed_and_exit_3(night, nightshift, local_ray):
    night.write("a.parquet", range(5))
    for number in range(7):
        (night.data / f"broken-{number}.parquet").write_bytes(b"half")
    ended = nightshift(night.config(), "plan")
    assert ended.code == 3
    assert "7 input files cannot be read" in ended.record["outcome"]
    assert [file["path"] for file in ended.record["failed_files"]] == [f"broken-{n}.parquet" for n in range(7)]
    assert ended.said.count("cannot be read: ") == 5, "a few on the screen, all in the record"
    assert read_plan(night.store, "data").num_images == 5


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "does not exist, is empty"),
        ("empty", "does not exist, is empty"),
        ("nowhere.parquet", "does not exist"),
    ],
)
def test_no_such_path_and_an_empty_folder_exit_2(night, nightshift, local_ray, tmp_path, place, words):
    (tmp_path / "empty").mkdir()
    ended = nightshift(night.config(input={"url": str(tmp_path / place)}), "plan")
    assert ended.code == 2
    assert str(tmp_path / place) in ended.said
    assert words in ended.said
    assert local_ray.sessions == 0


def test_an_input_without_a_readable_file_exits_2(night, nightshift, local_ray):
    night.data.mkdir()
    (night.data / "a.parquet").write_bytes(b"half")
    ended = nightshift(night.config(), "plan")
    assert ended.code == 2
    assert "none of the 1 files can be read" in ended.record["outcome"]


def test_a_column_that_is_not_there_exits_2_and_names_the_near_one(night, nightshift, local_ray):
    night.write("a.parquet", range(3))
    ended = nightshift(night.config(input={"image_column": "imag"}), "plan")
    assert ended.code == 2
    assert "has no column 'imag' (input.image_column); did you mean 'image'?" in ended.said
