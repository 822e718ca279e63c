import http.server
import socket
import threading

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    ConfigError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    TransientError,
)
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

ODD_NAMES = ["a#1.jpg", "a%2Fb.jpg", "100% done.jpg", "ü ñ.jpg", "sp ace.jpg", "q?x.jpg", "a+b.jpg", "%C3.jpg",
             "star*.jpg", "back\\slash.jpg", "a[1].jpg", "weird:name.jpg", "UPPER.JPG", "sub folder/ö#.png"]  # fmt: skip
ACTIONS = {
    "read": lambda storage: storage.read("a"),
    "stat": lambda storage: storage.stat("a"),
    "open": lambda storage: storage.open("a"),
    "list": lambda storage: list(storage.list()),
    "write": lambda storage: storage.write("a", b"1"),
    "create": lambda storage: storage.create("a", b"1"),
}


@pytest.fixture
def bucket(s3):
    url, settings = s3
    return open_storage(f"{url}/some/prefix", settings)


@pytest.fixture
def client(s3):
    url, settings = s3
    made = boto3.client("s3", endpoint_url=settings.endpoint, region_name="us-east-1")
    return made, url.removeprefix("s3://")


@pytest.fixture
def stubborn(monkeypatch):
    """A server that gives every request the same answer: `stubborn(status, body)` returns settings and a list of requests."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    servers = []

    def start(status: int, body: bytes = b""):
        requests: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                requests.append(self.command)
                self.rfile.read(int(self.headers.get("content-length") or 0))
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_PUT = do_HEAD = do_POST = do_GET

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        endpoint = f"http://127.0.0.1:{server.server_port}"
        return StorageSettings(endpoint=endpoint, region="us-east-1", timeout_s=5, max_retries=1), requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_is_written_is_read_listed_and_deleted(bucket, s3):
    bucket.write("b/c.json", b"one")
    bucket.write("a.json", b"two")
    bucket.write("b/c.json", b"three")
    assert bucket.read("b/c.json") == b"three"
    assert sorted(entry.path for entry in bucket.list()) == ["a.json", "b/c.json"]
    assert list(bucket.list("b")) == [bucket.stat("b/c.json")]
    assert bucket.stat("b/c.json").size_bytes == 5
    bucket.delete("b/c.json")
    bucket.delete("b/c.json")
    assert [entry.path for entry in bucket.list()] == ["a.json"]
    assert [entry.path for entry in open_storage(*s3).list()] == ["some/prefix/a.json"]


def test_a_prefix_ends_at_a_folder(bucket, s3):
    open_storage(*s3).write("some/prefix-of-another/x", b"1")
    bucket.write("bb/x", b"1")
    assert [entry.path for entry in bucket.list("b")] == []
    assert [entry.path for entry in bucket.list()] == ["bb/x"]
    assert list(bucket.list("no/such")) == []


def test_more_keys_than_a_page_are_listed(bucket, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")
    for i in range(11):
        bucket.write(f"{i:04d}", b"")
    assert sorted(entry.path for entry in bucket.list()) == [f"{i:04d}" for i in range(11)]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_keys_are_never_decoded(bucket, client, name):
    made, bucket_name = client
    made.put_object(Bucket=bucket_name, Key=f"some/prefix/{name}", Body=name.encode())
    [entry] = bucket.list()
    assert entry.path == name
    assert bucket.read(name, entry.version) == name.encode()
    bucket.write(name, b"new")
    assert [o["Key"] for o in made.list_objects_v2(Bucket=bucket_name)["Contents"]] == [f"some/prefix/{name}"]


@pytest.mark.parametrize("prefix", ["a#b", "50%", "a%2Fb", "q?r", "sp ace", "ü", "a+b"])
def test_prefixes_are_keys_not_urls(s3, client, prefix):
    made, name = client
    made.put_object(Bucket=name, Key=f"{prefix}/x.jpg", Body=b"1")
    storage = open_storage(f"{s3[0]}/{prefix}", s3[1])
    assert [entry.path for entry in storage.list()] == ["x.jpg"]
    assert storage.read("x.jpg") == b"1"


def test_dot_names_are_hidden(bucket):
    for name in (".hidden", "a/.hidden", "a/b"):
        bucket.write(name, b"1")
    assert [entry.path for entry in bucket.list()] == ["a/b"]


def test_keys_that_cannot_be_spelled_are_storage_errors(bucket):
    for action in (bucket.read, bucket.stat, lambda path: bucket.write(path, b"1")):
        with pytest.raises(StorageError, match="empty path segment"):
            action("a//b")


@pytest.mark.parametrize("pages", ["1000", "2"])
def test_keys_that_cannot_be_spelled_hide_no_others(bucket, client, monkeypatch, caplog, pages):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", pages)
    made, name = client
    good = ["(1).jpg", "a/(1).jpg", "a/0", "a/x.jpg", "a/x/y.jpg", "a-b.jpg", "b/c/d.jpg", "top.jpg", "ü/z.jpg"]
    for key in [*good, "a//b", "a//c//d", "/z", "b/c/\x01.jpg", "a/.hidden"]:
        made.put_object(Bucket=name, Key=f"some/prefix/{key}", Body=key.encode())
    entries = list(bucket.list())
    assert sorted(entry.path for entry in entries) == sorted(good)
    assert [bucket.read(entry.path, entry.version) for entry in entries] == [e.path.encode() for e in entries]
    assert sorted(entry.path for entry in bucket.list("a")) == ["a/(1).jpg", "a/0", "a/x.jpg", "a/x/y.jpg"]
    assert any("it is left out" in message for message in caplog.messages)


def test_create_has_exactly_one_winner_of_eight(bucket, run_together):
    for turn in range(3):
        results = run_together(*[lambda i=i, turn=turn: bucket.create(f"n/{turn}.json", b"%d" % i) for i in range(8)])
        assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError"] * 7 + ["NoneType"]
        assert bucket.read(f"n/{turn}.json") == b"%d" % results.index(None)


def test_another_version_is_refused_in_read_and_open(bucket):
    bucket.write("x", b"one")
    version = bucket.stat("x").version
    assert bucket.read("x", version) == b"one"
    bucket.write("x", b"two")
    for read in (bucket.read, bucket.open):
        with pytest.raises(SourceChangedError, match="/x changed since it was planned"):
            read("x", version)


def test_a_file_that_changes_while_it_is_open_is_noticed(bucket):
    """Every range request carries If-Match, so that pages of two versions never meet in one table."""
    table = pa.table({"x": [bytes(100_000)] * 10})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1, compression="none")
    data = sink.getvalue().to_pybytes()
    bucket.write("x.parquet", data)
    with bucket.open("x.parquet", bucket.stat("x.parquet").version) as handle:
        parquet = pq.ParquetFile(handle)
        assert parquet.read_row_group(0)["x"][0].as_py() == bytes(100_000)
        bucket.write("x.parquet", data[:-1] + b"!")
        with pytest.raises(SourceChangedError, match=r"x\.parquet changed since it was planned"):
            parquet.read_row_group(9)


def test_random_reads_match_the_bytes(bucket):
    data = bytes(range(256)) * 1000
    bucket.write("x", data)
    with bucket.open("x") as file:
        for start in (200_000, 0, len(data) - 5):
            file.seek(start)
            assert file.read(100) == data[start : start + 100]
        assert file.seek(-3, 2) == len(data) - 3
        assert file.read() == data[-3:]
        assert file.read() == b""


def test_only_what_is_asked_for_is_read(bucket, monkeypatch):
    from pipeline import objectstore

    bucket.write("x", bytes(1_000_000))
    ranges, get = [], objectstore.obstore.get
    monkeypatch.setattr(
        objectstore.obstore,
        "get",
        lambda store, path, options: ranges.append(options["range"]) or get(store, path, options=options),
    )
    with bucket.open("x") as file:
        file.seek(500_000)
        file.read(10)
    assert [start for start, _ in ranges] == [500_000]
    assert ranges[0][1] - 500_000 <= 1 << 16


@pytest.mark.parametrize("action", ACTIONS)
def test_a_missing_bucket_is_not_found(s3, action):
    storage = open_storage("s3://no-such-bucket/x", s3[1])
    with pytest.raises(NotFoundError, match=r"s3://no-such-bucket/x.* does not exist"):
        ACTIONS[action](storage)


def test_nothing_there_is_not_found(bucket):
    for action in (bucket.read, bucket.stat, bucket.open):
        with pytest.raises(NotFoundError, match="no/such does not exist"):
            action("no/such")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("status", [401, 403])
def test_denied_is_final_and_says_so(stubborn, status, action):
    settings, requests = stubborn(status)
    with pytest.raises(AccessDeniedError, match=r"s3://bucket/x.*: access denied; check the credentials"):
        ACTIONS[action](open_storage("s3://bucket/x", settings))
    assert len(requests) == 1


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_throttling_and_server_errors_are_retried_within_the_limit_then_transient(stubborn, status, action):
    settings, requests = stubborn(status)
    with pytest.raises(TransientError, match=f"s3://bucket/x.*{status}"):
        ACTIONS[action](open_storage("s3://bucket/x", settings))
    assert len(requests) == 1 + settings.max_retries


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (301, b"", StorageError, "another region; set storage.region"),
        (400, b"<Code>ExpiredToken</Code>", StorageError, "400 Bad Request.*check the storage section"),
        (400, b"<Code>RequestTimeout</Code>", TransientError, "400 Bad Request"),
        (404, b"", NotFoundError, "does not exist: check the bucket's name"),
        (408, b"", TransientError, "408"),
        (412, b"", StorageError, "412"),
    ],
)
def test_other_refusals_of_a_listing_are_told_apart(stubborn, status, body, kind, words):
    settings, _ = stubborn(status, body)
    with pytest.raises(kind, match=words):
        list(open_storage("s3://bucket/x", settings).list())


@pytest.mark.parametrize("action", ACTIONS)
def test_an_endpoint_that_refuses_connections_is_transient(s3, action):
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        settings = StorageSettings(endpoint=endpoint, region="us-east-1", timeout_s=5, max_retries=1)
        with pytest.raises(TransientError, match=r"s3://bucket/x.*: .*after 1 retries"):
            ACTIONS[action](open_storage("s3://bucket/x", settings))


def test_a_refused_create_that_exists_is_not_retried(stubborn):
    settings, requests = stubborn(412)
    with pytest.raises(AlreadyExistsError, match="s3://bucket/x/a exists already"):
        open_storage("s3://bucket/x", settings).create("a", b"1")
    assert requests == ["PUT"]


@pytest.mark.parametrize("url", ["s3://", "s3:///x"])
def test_a_url_without_a_bucket_is_a_config_error(url, storage_settings):
    with pytest.raises(ConfigError, match=r"names no place in an object store.*such as s3://bucket/folder"):
        open_storage(url, storage_settings)


def test_anonymous_access_signs_nothing(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    storage = open_storage(s3[0], s3[1].model_copy(update={"anonymous": True}))
    assert list(storage.list()) == []


def test_memory_is_one_store_per_url_and_keeps_the_contract(storage_settings):
    storage = open_storage("memory://test-objectstore", storage_settings)
    storage.create("a/x", b"one")
    with pytest.raises(AlreadyExistsError):
        storage.create("a/x", b"two")
    version = storage.stat("a/x").version
    storage.write("a/x", b"two!")
    with pytest.raises(SourceChangedError):
        storage.read("a/x", version)
    other = open_storage("memory://test-objectstore", StorageSettings(timeout_s=1))
    with other.open("a/x") as file:
        assert file.read() == b"two!"
    assert [entry.path for entry in storage.list("a")] == ["a/x"]
