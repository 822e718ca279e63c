import errno
import os

import pytest

from pipeline.errors import (
    AccessDeniedError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    StoreFullError,
    TransientError,
)
from pipeline.refusals import BRIEF, PASSING, changed, damaged, file_error, first_line, missing, printable, vanished


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a.jpg", "https://***@host/a.jpg"),
        ("https://token@host/a.jpg", "https://***@host/a.jpg"),
        ("http://me:p@ss@host:9000/a", "http://***@host:9000/a"),
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("s3://bucket/a@b.jpg", "s3://bucket/a@b.jpg"),
        ("s3://bucket/10:30 me@home.jpg", "s3://bucket/10:30 me@home.jpg"),
        ("https://h/x?sv=1&sig=abc%2B&se=2", "https://h/x?sv=1&sig=***&se=2"),
        ("https://h/x?X-Amz-Credential=AK&X-Amz-Signature=ff", "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("https://h/x?X-Amz-Security-Token=t", "https://h/x?X-Amz-Security-Token=***"),
        ("https://h/x?page=2", "https://h/x?page=2"),
        ("GET http://u:p@h/x and https://v:q@i/y failed", "GET http://***@h/x and https://***@i/y failed"),
        ("/data/photos/a.jpg", "/data/photos/a.jpg"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize("make", [missing, changed, vanished])
def test_no_message_shows_a_password(make):
    assert "pw" not in str(make("https://me:pw@host/a.jpg"))


def test_a_planned_file_that_is_gone_has_changed():
    assert isinstance(vanished("/data/a.jpg"), SourceChangedError)
    assert str(vanished("/data/a.jpg")).startswith("/data/a.jpg vanished since it was planned; `nightshift plan`")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, NotFoundError), (errno.EACCES, AccessDeniedError), (errno.EPERM, AccessDeniedError),
        (errno.EIO, TransientError), (errno.ESTALE, TransientError), (errno.ENOSPC, StoreFullError), (errno.EDQUOT, StoreFullError),
        (errno.EROFS, StorageError), (errno.ENAMETOOLONG, StorageError), (errno.ENOTDIR, StorageError),
    ],
)  # fmt: skip
def test_what_may_pass_is_told_from_what_stays(code, kind):
    error = file_error("/data/x", OSError(code, os.strerror(code)))
    assert type(error) is kind
    assert "/data/x" in str(error)


def test_a_full_disk_is_neither_brief_nor_passing():
    assert errno.ENOMEM in PASSING - BRIEF
    assert not {errno.ENOSPC, errno.EDQUOT} & PASSING
    assert BRIEF < PASSING


def test_first_line_is_short():
    assert first_line(ValueError("a" * 400 + "\nb")) == "a" * 300
    assert first_line(ValueError()) == "ValueError"


def test_damage_is_said_with_place_and_remedy():
    said = str(damaged("s3://k:s@bucket/a.parquet", ValueError("bad page\nat 7")))
    assert said == "s3://***@bucket/a.parquet: damaged rows (bad page); replace the file, then plan again"
