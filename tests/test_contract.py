"""What every storage promises, on every kind of store: the file system, memory, and servers that speak S3, Azure and GCS."""

import json
from contextlib import suppress

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faultproxy import FaultProxy

from pipeline.errors import AlreadyExistsError, NotFoundError, SourceChangedError, StorageError, TransientError
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage

STORES = ["file", "memory", "s3", "azure"]
NAMES = ["a/b.jpg", "a#1.jpg", "a%2Fb.jpg", "100% done.jpg", "ü ñ.jpg", "q?x.jpg", "a+b.jpg", "weird:name.jpg"]


@pytest.fixture(params=STORES)
def place(request, tmp_path):
    """The URL of an empty folder and the settings that reach it."""
    if request.param == "file":
        return str(tmp_path), StorageSettings()
    if request.param == "memory":
        return f"memory://{tmp_path}", StorageSettings()
    url, settings = request.getfixturevalue(request.param)
    return f"{url}/x", settings


@pytest.fixture
def store(place):
    return open_storage(*place)


def listed(store, prefix: str = "") -> list[str]:
    return sorted(entry.path for entry in store.list(prefix))


def test_what_is_written_is_read_listed_and_deleted(store):
    store.write("b/c.json", b"one")
    store.write("a.json", b"two")
    store.write("b/c.json", b"three")
    assert store.read("b/c.json") == b"three"
    assert listed(store) == ["a.json", "b/c.json"]
    assert listed(store, "b") == ["b/c.json"]
    assert listed(store, "no/such") == []
    store.delete("b/c.json")
    store.delete("b/c.json")
    assert listed(store) == ["a.json"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_kept_and_all_ways_to_ask_name_the_same_version(store, name):
    store.write(name, name.encode())
    [entry] = store.list()
    assert entry == store.stat(name)
    assert (entry.path, entry.size_bytes) == (name, len(name.encode()))
    assert store.read(name, entry.version) == name.encode()
    with store.open(name, entry.version) as file:
        assert file.read() == name.encode()


def test_an_empty_object_is_an_object(store):
    store.write("x", b"")
    assert store.read("x", store.stat("x").version) == b""
    with store.open("x") as file:
        assert file.read() == b""


def test_nothing_there_is_not_found_and_nothing_planned_there_has_changed(store):
    store.write("x", b"1")
    version = store.stat("x").version
    for read in (store.read, store.open):
        with pytest.raises(NotFoundError, match="no/such does not exist"):
            read("no/such")
    store.delete("x")
    for read in (store.read, store.open):
        with pytest.raises(SourceChangedError, match=r"/x (vanished|changed) since it was planned"):
            read("x", version)


def test_another_version_is_refused(store):
    store.write("x", b"one")
    version = store.stat("x").version
    store.write("x", b"other")
    for read in (store.read, store.open):
        with pytest.raises(SourceChangedError, match="/x changed since it was planned"):
            read("x", version)
    assert store.read("x", store.stat("x").version) == b"other"


def test_two_versions_never_meet_in_one_reader(store):
    """An open file keeps its version while others write: either all of it, or an error."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [bytes(100_000)] * 10}), sink, row_group_size=1, compression="none")
    data = sink.getvalue().to_pybytes()
    store.write("x.parquet", data)
    with store.open("x.parquet", store.stat("x.parquet").version) as handle:
        parquet = pq.ParquetFile(handle, pre_buffer=True)
        assert parquet.read_row_group(0)["x"][0].as_py() == bytes(100_000)
        store.write("x.parquet", data.replace(bytes(100_000), b"1" * 100_000))
        with suppress(SourceChangedError):
            assert parquet.read_row_group(9)["x"][0].as_py() == bytes(100_000)


def test_random_reads_match_the_bytes(store):
    data = bytes(range(256)) * 1000
    store.write("x", data)
    with store.open("x") as file:
        for start in (200_000, 0, len(data) - 5):
            file.seek(start)
            assert file.read(100) == data[start : start + 100]
        assert file.seek(-3, 2) == file.tell() == len(data) - 3
        assert file.read() == data[-3:]
        assert file.read(1) == b""


def test_create_has_exactly_one_winner_of_eight(store, run_together):
    results = run_together(*[lambda i=i: store.create("n/1.json", b"%d" % i) for i in range(8)])
    assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError"] * 7 + ["NoneType"]
    assert store.read("n/1.json") == b"%d" % results.index(None)
    with pytest.raises(AlreadyExistsError, match=r"n/1\.json exists already"):
        store.create("n/1.json", b"again")


@pytest.mark.parametrize("operation", ["write", "read", "stat", "create"])
def test_what_cannot_be_is_a_storage_error(place, operation):
    if place[0].startswith(("/", "memory")):
        return
    scheme, _, rest = place[0].partition("://")
    store = open_storage(f"{scheme}://no-such-{rest}", place[1])
    arguments = ("a", b"1") if operation in ("write", "create") else ("a",)
    with pytest.raises(StorageError, match="no-such"):
        getattr(store, operation)(*arguments)


# GCS has no free server that speaks its XML protocol. That is a dialect of S3's, so an S3 server answers for public
# objects, and what is sent to write is looked at.


@pytest.fixture
def gcs(s3):
    """A folder of a bucket as GCS sees it, public."""
    url, settings = s3
    return open_storage(f"gs://{url.removeprefix('s3://')}/x", settings.model_copy(update={"anonymous": True}))


def test_public_objects_of_gcs_are_read_as_one_version(gcs, s3):
    client = boto3.client("s3", endpoint_url=s3[1].endpoint, region_name="us-east-1")

    def write(name: str, data: bytes) -> None:
        client.put_object(Bucket=s3[0].removeprefix("s3://"), Key=f"x/{name}", Body=data, ACL="public-read")

    for name in NAMES:
        write(name, name.encode())
    assert listed(gcs) == sorted(NAMES)
    for entry in list(gcs.list()):
        assert entry == gcs.stat(entry.path)
        assert gcs.read(entry.path, entry.version) == entry.path.encode()
        with gcs.open(entry.path, entry.version) as file:
            file.seek(1)
            assert file.read(2) == entry.path.encode()[1:3]
            write(entry.path, b"new")
            with pytest.raises(SourceChangedError):
                file.read(1)
        with pytest.raises(SourceChangedError):
            gcs.read(entry.path, entry.version)
    with pytest.raises(NotFoundError):
        gcs.read("no/such")


@pytest.mark.parametrize(("status", "kind"), [(412, AlreadyExistsError), (429, TransientError), (503, TransientError)])
def test_what_gcs_is_asked_to_create_and_may_answer(s3, monkeypatch, status, kind):
    key = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
    seen = []
    with FaultProxy(s3[1].endpoint, 0) as proxy:

        def answer(handler, body):
            seen.append(dict(handler.headers))
            return status, {}, b""

        monkeypatch.setattr(proxy.handler, "_forward", answer)
        store = open_storage("gs://bucket/x", s3[1].model_copy(update={"endpoint": proxy.url}))
        with pytest.raises(kind, match=r"gs://bucket/x/1\.json"):
            store.create("1.json", b"mine")
    assert len(seen) == (1 if status == 412 else 2)
    assert seen[0]["x-goog-if-generation-match"] == "0"


def test_azure_outlasts_faults_and_finds_its_own_lost_create(azure, monkeypatch):
    monkeypatch.setattr("pipeline.retrying.FIRST_PAUSE_S", 0.01)
    url, settings = azure
    server, _, account = settings.endpoint.rpartition("/")
    with FaultProxy(server, 0.3, kinds=("error", "slow_down", "reset", "cut", "swallow")) as proxy:
        changes = {"endpoint": f"{proxy.url}/{account}", "max_retries": 12}
        store = open_storage(f"{url}/x", settings.model_copy(update=changes))
        for i in range(15):
            store.write(f"{i:02d}", b"%d" % i)
        proxy.plan("swallow")
        store.create("99", b"mine")
        assert listed(store) == [*(f"{i:02d}" for i in range(15)), "99"]
        assert [store.read(f"{i:02d}", store.stat(f"{i:02d}").version) for i in range(15)] == [
            b"%d" % i for i in range(15)
        ]
        store.delete("00")
        assert proxy.faults.total() > 10
    assert listed(open_storage(f"{url}/x", settings)) == [*(f"{i:02d}" for i in range(1, 15)), "99"]
