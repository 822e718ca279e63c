import errno
import os
import pickle
import random
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ConfigError,
    NightshiftError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    TransientError,
)
from pipeline.retrying import Patience
from pipeline.settings import StorageSettings
from pipeline.storage import Entry, FileStorage, absolute_url, join, open_storage, scheme_of

ODD_NAMES = ["a#1.jpg", "a%2Fb.jpg", "100% done.jpg", "ü ñ.jpg", "sp ace.jpg", "q?x.jpg", "a+b.jpg", "%C3.jpg",
             "star*.jpg", "back\\slash.jpg", "a[1].jpg", "weird:name.jpg", "UPPER.JPG", "sub folder/ö#.png"]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return FileStorage(str(tmp_path), Patience(max_retries=2, total_s=60))


def paths(where, prefix: str = "") -> list[str]:
    return [entry.path for entry in where.list(prefix)]


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("photos", "file"), ("/a/b", "file"), ("file:///a", "file"), ("C:/x", "file"), ("weird:name.jpg", "file"),
        ("10:30.jpg", "file"), ("[x]/y.jpg", "file"), ("s3://b/a#1", "s3"), ("S3://b", "s3"), ("s3://", "s3"),
        ("https://h/x?y", "https"), ("memory://x", "memory"), ("://x", "file"), ("a b://x", "file"), ("s3://[x", "s3"),
    ],
)  # fmt: skip
def test_scheme_of(url, scheme):
    assert scheme_of(url) == scheme


def test_relative_paths_become_absolute_and_urls_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert absolute_url("x/y") == f"{tmp_path}/x/y"
    assert absolute_url("file:///x/y") == "/x/y"
    assert absolute_url("~/x") == "/home/someone/x"
    assert absolute_url("s3://bucket/x/") == "s3://bucket/x"
    assert absolute_url("s3://") == "s3://"


@pytest.mark.parametrize(
    ("url", "path", "whole"),
    [("a", "b", "a/b"), ("a/", "/b", "a/b"), ("a", "", "a"), ("/", "b", "/b"), ("s3://b", "x/y", "s3://b/x/y")],
)
def test_join(url, path, whole):
    assert join(url, path) == whole


def test_unknown_schemes_are_refused(storage_settings):
    with pytest.raises(ConfigError, match=r"unknown storage scheme ftp://.*expected a local path or one of s3://"):
        open_storage("ftp://host/x", storage_settings)


def test_one_storage_per_folder_and_settings(tmp_path):
    first = open_storage(str(tmp_path), StorageSettings())
    assert open_storage(str(tmp_path), StorageSettings()) is first
    assert open_storage(str(tmp_path), StorageSettings(region="x")) is not first


def test_what_is_written_is_read_listed_and_deleted(folder):
    folder.write("b/c.json", b"one")
    folder.write("a.json", b"two")
    folder.write("b/c.json", b"three")
    assert folder.read("b/c.json") == b"three"
    assert paths(folder) == ["a.json", "b/c.json"]
    assert paths(folder, "b") == ["b/c.json"]
    assert folder.stat("b/c.json") == next(folder.list("b"))
    assert folder.stat("b/c.json").size_bytes == 5
    folder.delete("b/c.json")
    folder.delete("b/c.json")
    assert paths(folder) == ["a.json"]


def test_writing_leaves_no_temporary_file(folder, tmp_path):
    folder.write("x", b"1")
    folder.create("y", b"1")
    with pytest.raises(AlreadyExistsError):
        folder.create("y", b"2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(folder, tmp_path, monkeypatch):
    folder.write("x", b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    for write in (folder.write, folder.create):
        with pytest.raises(TransientError, match=r"x: No space left on device; check the path, .* free space"):
            write("x", b"new")
    assert folder.read("x") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_temporary_files_of_a_killed_writer_are_not_listed(folder, tmp_path):
    (tmp_path / ".x.json.0123456789ab.tmp").write_bytes(b"half")
    assert paths(folder) == []


def test_create_has_exactly_one_winner_of_eight(folder, run_together):
    for turn in range(5):
        results = run_together(*[lambda i=i, turn=turn: folder.create(f"n/{turn}.json", b"%d" % i) for i in range(8)])
        assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError"] * 7 + ["NoneType"]
        assert folder.read(f"n/{turn}.json") == b"%d" % results.index(None)


def test_readers_see_a_whole_old_or_a_whole_new_object(folder, run_together):
    size = 1 << 16
    folder.write("x", b"0" * size)

    def write():
        for i in range(40):
            folder.write("x", b"%d" % (i % 10) * size)

    def read():
        return {(len(data), len(set(data))) for data in (folder.read("x") for _ in range(200))}

    assert run_together(write, read, read)[1:] == [{(size, 1)}] * 2


def test_another_version_is_refused_in_read_and_open(folder):
    folder.write("x", b"one")
    version = folder.stat("x").version
    assert folder.read("x", version) == b"one"
    with folder.open("x", version) as file:
        assert file.read() == b"one"
    os.utime(folder.url + "/x", ns=(1, 1))
    for read in (folder.read, folder.open):
        with pytest.raises(SourceChangedError, match=r"/x changed since it was planned.*takes the new version"):
            read("x", version)


def test_a_planned_file_that_is_gone_has_changed(folder, tmp_path):
    folder.write("x", b"one")
    version = folder.stat("x").version
    (tmp_path / "x").unlink()
    for read in (folder.read, folder.open):
        with pytest.raises(SourceChangedError, match=r"/x vanished since it was planned"):
            read("x", version)


def overwrite(path, data: bytes) -> None:
    """Write into the file itself, as editors and cameras do; `write` renames a new one into its place."""
    with path.open("r+b") as file:
        file.write(data)


CHANGES = {
    "rewritten in place": lambda path: overwrite(path, b"1" * 300_000),
    "rewritten in part": lambda path: overwrite(path, b"1"),
    "cut off": lambda path: os.truncate(path, 150_000),
    "appended to": lambda path: overwrite(path, b"1" * 300_001),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rest", [-1, 100, 200_000])
def test_a_file_that_changes_while_it_is_read_is_an_error_never_a_mix(folder, tmp_path, change, rest):
    folder.write("x", b"0" * 300_000)
    os.utime(tmp_path / "x", ns=(1, 1))
    with folder.open("x", folder.stat("x").version) as file:
        assert file.read(10) == b"0" * 10
        CHANGES[change](tmp_path / "x")
        file.seek(100_000)
        with pytest.raises(SourceChangedError, match=r"/x changed since it was planned"):
            file.read(rest)


def test_a_file_that_is_replaced_while_it_is_read_stays_what_it_was(folder):
    folder.write("x", b"0" * 300_000)
    with folder.open("x", folder.stat("x").version) as file:
        assert file.read(10) == b"0" * 10
        folder.write("x", b"1" * 300_000)
        assert set(file.read()) == set(b"0")


def test_a_moment_of_failure_is_waited_for(folder, monkeypatch):
    """What network file systems do for a moment: every call fails twice, then answers."""
    monkeypatch.setattr("pipeline.retrying.FIRST_PAUSE_S", 0.001)
    folder.write("a/x", b"one")
    failed = []

    def stumbling(name):
        real, left = getattr(os, name), [errno.ESTALE, errno.EIO]

        def call(*arguments, **options):
            if left:
                failed.append(name)
                raise OSError(left.pop(), "passing")
            return real(*arguments, **options)

        monkeypatch.setattr(storage.os, name, call)

    stumbling("open")
    assert folder.read("a/x") == b"one"
    stumbling("scandir")
    assert paths(folder) == ["a/x"]
    stumbling("fsync")
    folder.write("y", b"two")
    stumbling("fsync")
    folder.create("z", b"three")
    assert failed == ["open"] * 2 + ["scandir"] * 2 + ["fsync"] * 4
    assert [folder.read(name) for name in ("y", "z")] == [b"two", b"three"]
    assert sorted(path.name for path in Path(folder.url).iterdir()) == ["a", "y", "z"]


def test_a_link_whose_answer_was_lost_is_ours(folder, monkeypatch):
    """NFS: the server made the link, its answer was lost, and the client's second request finds the name taken."""
    link = Path.hardlink_to

    def twice(target, source):
        link(target, source)
        link(target, source)

    monkeypatch.setattr(Path, "hardlink_to", twice)
    folder.create("1.json", b"mine")
    assert folder.read("1.json") == b"mine"
    with pytest.raises(AlreadyExistsError):
        folder.create("1.json", b"mine")


def test_identity_is_path_size_and_version():
    assert Entry("a", 3, "v").identity == ("a", 3, "v")


def test_nothing_there_is_not_found_and_lists_nothing(folder):
    for action in (folder.read, folder.stat, folder.open):
        with pytest.raises(NotFoundError, match=r"no/such does not exist"):
            action("no/such")
    assert paths(folder, "no/such") == []
    assert paths(FileStorage("/nowhere/at/all")) == []


def test_folders_pipes_and_files_are_told_apart(folder, tmp_path):
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    folder.write("x", b"1")
    for name in ("sub", "pipe"):  # opening a pipe would wait for its writer for ever
        for action in (folder.read, folder.stat, folder.open):
            with pytest.raises(NotFoundError, match=f"{name} is no file"):
                action(name)
    assert paths(folder) == ["x"]
    assert paths(folder, "x") == []  # as on object stores: nothing lies below a file
    with pytest.raises(StorageError, match="Not a directory"):
        folder.read("x/y")


def test_a_store_below_a_file_cannot_be_written_and_nobody_is_told_that_it_exists(folder):
    folder.write("x", b"1")
    for path in ("x/y", "x/y/z"):
        for write in (folder.write, folder.create):
            with pytest.raises(StorageError, match="check the path") as caught:
                write(path, b"2")
            assert not isinstance(caught.value, AlreadyExistsError)  # which means: read the winner, try the next number


def test_an_unreadable_folder_is_an_error_not_an_empty_one(folder, tmp_path, monkeypatch):
    """The superuser can read every folder, so the refusal is played."""
    folder.write("open/x", b"1")
    folder.write("shut/x", b"1")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(storage.os, "scandir", refuse)
    with pytest.raises(AccessDeniedError, match="shut: Permission denied; check the path, its permissions"):
        paths(folder)


def test_a_folder_that_is_linked_twice_is_listed_under_both_names(folder, tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common/x").write_bytes(b"")
    (tmp_path / "cats").symlink_to("common")
    (tmp_path / "dogs").symlink_to("common")
    assert paths(folder) == ["cats/x", "common/x", "dogs/x"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EIO, TransientError), (errno.ESTALE, TransientError), (errno.EMFILE, TransientError),
        (errno.EACCES, AccessDeniedError), (errno.EROFS, StorageError), (errno.ENAMETOOLONG, StorageError),
    ],
)  # fmt: skip
def test_what_may_pass_is_told_from_what_stays(folder, monkeypatch, code, kind):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.os, "open", fail)
    with pytest.raises(NightshiftError) as caught:
        folder.read("x")
    assert type(caught.value) is kind


def test_links_are_followed_cycles_end_and_dangling_ones_are_left_out(folder, tmp_path):
    folder.write("a/x", b"1")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "link").symlink_to("a/x")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert paths(folder) == ["a/x", "link"]


def test_dot_names_are_hidden_and_the_order_is_by_name(folder, tmp_path):
    for name in ("b/2", "b/1", "a", "c.d/x", ".git/x", "b/.x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert paths(folder) == ["a", "b/1", "b/2", "c.d/x"]


def test_a_file_deleted_while_the_folder_is_listed_is_not_an_error(folder, tmp_path):
    for name in ("a", "b", "c"):
        folder.write(name, b"1")
    listing = folder.list()
    next(listing)
    (tmp_path / "b").unlink()
    assert [entry.path for entry in listing] == ["c"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_kept_as_they_are(folder, name):
    folder.write(name, name.encode())
    assert paths(folder) == [name]
    assert folder.read(name, folder.stat(name).version) == name.encode()


def test_random_reads_match_the_bytes(folder):
    data = random.Random(0).randbytes(10_000)
    folder.write("x", data)
    with folder.open("x") as file:
        for start in (5000, 0, 9990):
            file.seek(start)
            assert file.read(100) == data[start : start + 100]


def test_a_storage_travels_to_workers(folder):
    folder.write("x", b"1")
    assert pickle.loads(pickle.dumps(folder)).read("x") == b"1"
