import socket

import pytest
from serving import served

from pipeline import locations
from pipeline.errors import ImageError, TransientError
from pipeline.locations import fetch, resolve
from pipeline.settings import InputSettings, StorageSettings
from pipeline.storage import open_storage

PLAIN = StorageSettings()


@pytest.fixture
def base(tmp_path):
    """A folder `in` with a picture, and a secret beside it."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "a.jpg").write_bytes(b"picture")
    (tmp_path / "secret").write_bytes(b"secret")
    return str(tmp_path / "in")


def read(uri: str, base: str, *allowed: str, storage: StorageSettings = PLAIN) -> bytes:
    return fetch(uri, base, InputSettings(url=base, uri_column="u", allowed_prefixes=allowed), storage)


def reason(uri: str, base: str, *allowed: str, storage: StorageSettings = PLAIN) -> str:
    with pytest.raises(ImageError) as caught:
        read(uri, base, *allowed, storage=storage)
    assert caught.value.stage == "read"
    assert caught.value.message
    return caught.value.reason


@pytest.mark.parametrize(
    ("uri", "base", "allowed", "found"),
    [
        ("a.jpg", "s3://b/in", ("s3://b/in",), ("s3://b/in", "a.jpg")),
        ("x/./y/../a.jpg", "s3://b/in", ("s3://b/in",), ("s3://b/in", "x/a.jpg")),
        ("s3://b/in/x/a.jpg", "/data", ("s3://b",), ("s3://b", "in/x/a.jpg")),
        ("s3://b/in/x/a.jpg", "/data", ("s3://b", "s3://b/in/x/", "s3://b/in"), ("s3://b/in/x", "a.jpg")),
        ("S3://b/a.jpg", "/data", ("s3://b",), ("s3://b", "a.jpg")),
        ("a%20b#1?x.jpg", "s3://b", ("s3://b",), ("s3://b", "a%20b#1?x.jpg")),
        ("weird:name.jpg", "s3://b", ("s3://b",), ("s3://b", "weird:name.jpg")),
        ("https://h/a%20b.jpg", "/data", ("https://h/",), ("https://h", "a b.jpg")),
        ("/nowhere/x/a.jpg", "s3://b", ("/nowhere",), ("/nowhere", "x/a.jpg")),
        ("file:///nowhere/a.jpg", "s3://b", ("/nowhere",), ("/nowhere", "a.jpg")),
        ("/nowhere/a.jpg", "s3://b", ("/",), ("/", "nowhere/a.jpg")),
        ("nowhere/a.jpg", "/", ("/",), ("/", "nowhere/a.jpg")),
    ],
)
def test_locations_are_split_at_the_longest_allowed_prefix(uri, base, allowed, found):
    assert resolve(uri, base, allowed) == found


@pytest.mark.parametrize(
    ("uri", "base", "allowed"),
    [
        ("../a.jpg", "s3://b/in", ("s3://b/in",)),
        ("x/../../a.jpg", "s3://b/in", ("s3://b/in",)),
        ("s3://b/in-other/a.jpg", "s3://b/in", ("s3://b/in",)),
        ("s3://b/in", "s3://b/in", ("s3://b/in",)),
        ("", "s3://b/in", ("s3://b/in",)),
        (".", "s3://b/in", ("s3://b/in",)),
        ("s3://b/../other/a.jpg", "s3://b", ("s3://b",)),
        ("s3://other/a.jpg", "s3://b", ("s3://b",)),
        ("gs://b/a.jpg", "s3://b", ("s3://b",)),
        ("https://h/in/%2e%2e/a.jpg", "/data", ("https://h/in",)),
        ("https://169.254.169.254/latest/meta-data", "s3://b", ("s3://b",)),
        ("/etc/passwd", "s3://b", ("s3://b",)),
        ("file:///etc/passwd", "/data", ("/data",)),
        ("memory://x/a.jpg", "/data", ("/data",)),
    ],
)
def test_what_lies_outside_is_refused_before_anything_is_opened(uri, base, allowed, monkeypatch):
    monkeypatch.setattr(locations, "open_storage", lambda *arguments: pytest.fail("opened"))
    assert reason(uri, base, *allowed) == "forbidden_location"


def test_the_refusal_says_what_is_allowed_and_how_to_allow_more(base):
    with pytest.raises(
        ImageError, match=r"/etc/passwd lies outside the allowed prefixes \(/a, /b\); add its folder to"
    ):
        read("/etc/passwd", base, "/a", "/b")


@pytest.mark.parametrize("uri", ["sub/a.jpg", "./sub/../sub/a.jpg", "{base}/sub/a.jpg", "file://{base}/sub/a.jpg"])
def test_below_the_inputs_own_folder_all_spellings_are_read(base, uri):
    assert read(uri.format(base=base), base) == b"picture"


@pytest.mark.parametrize("uri", ["../secret", "{base}/../secret", "sub/../../secret", "file://{base}/../secret"])
def test_outside_of_it_none_is(base, uri):
    assert reason(uri.format(base=base), base) == "forbidden_location"


def test_links_are_resolved_first_so_what_is_compared_is_what_is_opened(base, tmp_path):
    (tmp_path / "in" / "out.jpg").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "inside.jpg").symlink_to("sub/a.jpg")
    (tmp_path / "alias").symlink_to("in")
    assert reason("out.jpg", base) == "forbidden_location"
    assert reason("up/secret", base) == "forbidden_location"
    assert read("inside.jpg", base) == b"picture"
    assert read("sub/a.jpg", str(tmp_path / "alias")) == b"picture"  # the prefix may itself be a link


def test_more_prefixes_may_be_allowed(base, tmp_path):
    assert read(f"{tmp_path}/secret", base, str(tmp_path)) == b"secret"
    assert reason("sub/a.jpg", base, "/elsewhere") == "forbidden_location"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("no.jpg", "not_found"),
        ("sub", "not_found"),
        ("a\0b.jpg", "unreadable"),
        ("circle/a.jpg", "unreadable"),
        ("x" * 5000, "unreadable"),
        ("sub/a.jpg/b", "unreadable"),
    ],
)
def test_what_cannot_be_read_is_a_bad_row_not_a_failed_shard(base, tmp_path, uri, expected):
    (tmp_path / "in" / "circle").symlink_to("circle")
    assert reason(uri, base) == expected


@pytest.mark.parametrize("name", ["a#1.jpg", "50%.jpg", "a%20b.jpg", "ü ñ.jpg", "weird:name.jpg", "q?x.jpg"])
def test_names_are_taken_as_they_are(base, tmp_path, name):
    (tmp_path / "in" / name).write_bytes(name.encode())
    assert read(name, base) == name.encode()


@pytest.mark.parametrize("name", ["a#1.jpg", "50%.jpg", "a%20b.jpg", "x/ü ñ.jpg", "weird:name.jpg", "q?x.jpg"])
def test_keys_are_taken_as_they_are(s3, name):
    url, settings = s3
    open_storage(url, settings).write(f"in/{name}", name.encode())
    assert read(name, f"{url}/in", storage=settings) == name.encode()
    assert read(f"{url}/in/{name}", "/data", url, storage=settings) == name.encode()


def test_one_client_serves_all_folders_below_a_prefix(s3, monkeypatch):
    """With a client per folder, a table of date folders made thousands, each with connections of its own."""
    url, settings = s3
    store = open_storage(url, settings)
    for i in range(70):
        store.write(f"in/{i}/a.jpg", b"%d" % i)
    opened = []
    monkeypatch.setattr(
        locations, "open_storage", lambda *arguments: opened.append(arguments) or open_storage(*arguments)
    )
    assert [read(f"{i}/a.jpg", f"{url}/in", storage=settings) for i in range(70)] == [b"%d" % i for i in range(70)]
    assert set(opened) == {(f"{url}/in", settings)}


def test_a_refused_object_is_a_bad_row_and_an_unreachable_store_fails_the_attempt(s3):
    url, settings = s3
    assert reason("no.jpg", url, storage=settings) == "not_found"
    assert reason("a/../..//b", url, storage=settings) == "forbidden_location"
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(TransientError):
            read("a.jpg", url, storage=settings.model_copy(update={"endpoint": endpoint, "max_retries": 0}))


def test_http_locations_are_decoded_once(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a b.jpg", "ü#1.jpg"):
        (tmp_path / "in" / name).write_bytes(name.encode())

    settings = StorageSettings(max_retries=0, timeout_s=5)
    with served(tmp_path) as (url, _):
        assert read(f"{url}/in/a%20b.jpg", "/data", url, storage=settings) == b"a b.jpg"
        assert read(f"{url}/in/%C3%BC%231.jpg", "/data", f"{url}/in", storage=settings) == "ü#1.jpg".encode()
        assert reason(f"{url}/in/no.jpg", "/data", url, storage=settings) == "not_found"
