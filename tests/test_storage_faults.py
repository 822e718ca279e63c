"""Every operation, and whole nights, against an S3 server behind a proxy that misbehaves on purpose."""

import random

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Night, published
from faultproxy import FAULTS, FaultProxy

from pipeline.errors import AlreadyExistsError, NotFoundError, SourceChangedError, TransientError
from pipeline.settings import StorageSettings
from pipeline.storage import open_storage


@pytest.fixture
def proxied(s3):
    """Start proxies before the S3 server: `proxied(share, kinds)` returns the proxy and the settings that lead through it."""
    _, settings = s3
    started = []

    def start(share: float = 0.0, kinds=FAULTS, seed: int = 0, **changes):
        proxy = FaultProxy(settings.endpoint, share, seed, kinds).__enter__()
        started.append(proxy)
        through = {"endpoint": proxy.url, "timeout_s": 2, "max_retries": 12, "retry_s": 60}
        return proxy, settings.model_copy(update=through | changes)

    yield start
    for proxy in started:
        proxy.__exit__()


@pytest.fixture
def seen(s3):
    """The same folder as the proxied one, past the proxy."""
    return open_storage(f"{s3[0]}/x", s3[1])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("pipeline.retrying.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("pipeline.objectstore.FIRST_PAUSE_S", 0.01)


OPERATIONS = {
    "stat": lambda storage: storage.stat("a").size_bytes,
    "read": lambda storage: storage.read("a"),
    "open": lambda storage: storage.open("a").read(),
    "list": lambda storage: [entry.path for entry in storage.list()],
    "write": lambda storage: storage.write("b", b"new"),
    "create": lambda storage: storage.create("c", b"once"),
    "delete": lambda storage: storage.delete("a"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_outlasts_every_fault(s3, seen, proxied, name, fault):
    seen.write("a", b"12345678")
    direct = OPERATIONS[name](seen)
    for path in ("b", "c"):
        seen.delete(path)
    seen.write("a", b"12345678")
    proxy, settings = proxied(timeout_s=0.5)
    proxy.plan(fault, fault)
    assert OPERATIONS[name](open_storage(f"{s3[0]}/x", settings)) == direct
    assert proxy.faults[fault] == 2
    after = {"write": ["a", "b"], "create": ["a", "c"], "delete": []}.get(name, ["a"])
    assert [entry.path for entry in seen.list()] == after


@pytest.mark.parametrize("name", OPERATIONS)
def test_patience_ends(s3, seen, proxied, name):
    seen.write("a", b"12345678")
    proxy, settings = proxied(1.0, ("slow_down",), max_retries=3)
    with pytest.raises(TransientError, match=r"s3://nightshift-\w+/x.*503"):
        OPERATIONS[name](open_storage(f"{s3[0]}/x", settings))
    assert proxy.faults["slow_down"] == 4


def test_patience_ends_by_time_too(s3, proxied):
    proxy, settings = proxied(1.0, ("reset",), retry_s=0.2, max_retries=1000)
    with pytest.raises(
        TransientError, match=r"given up after \d+ retries in 0 s; storage.max_retries and storage.retry_s"
    ):
        open_storage(s3[0], settings).read("a")
    assert 1 < proxy.faults["reset"] < 1000


@pytest.mark.parametrize("seed", range(3))
def test_a_listing_of_many_pages_is_whole_and_repeats_nothing(s3, seen, proxied, monkeypatch, seed):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")
    monkeypatch.setattr("pipeline.objectstore.PAGE", 5)
    names = sorted([f"{i:03d}.jpg" for i in range(60)] + ["a#1", "a%2Fb", "a/b/c", "a-b", "ü/ö", "~"], key=str.encode)
    for name in names:
        seen.write(name, b"")
    proxy, settings = proxied(0.6, ("slow_down", "reset", "cut", "cut", "cut"), seed)
    assert [entry.path for entry in open_storage(f"{s3[0]}/x", settings).list()] == names
    assert proxy.faults["cut"] > 2


def test_a_create_whose_answer_was_lost_is_ours(s3, seen, proxied):
    proxy, settings = proxied()
    proxy.plan("swallow")
    storage = open_storage(f"{s3[0]}/x", settings)
    storage.create("1.json", b"mine")
    assert proxy.requests["PUT"] == 2
    assert seen.read("1.json") == b"mine"


def test_a_create_that_another_writer_won_is_lost_whatever_happened_to_the_request(s3, seen, proxied):
    seen.create("1.json", b"theirs")
    proxy, settings = proxied()
    for faults in ([], ["reset"], ["error", "swallow"], ["too_many"]):
        proxy.plan(*faults)
        with pytest.raises(AlreadyExistsError, match=r"1\.json exists already"):
            open_storage(f"{s3[0]}/x", settings).create("1.json", b"mine")
    assert seen.read("1.json") == b"theirs"


def test_equal_bytes_of_another_writer_are_not_ours_when_the_store_only_said_not_now(s3, seen, proxied):
    seen.create("1.json", b"same")
    proxy, settings = proxied()
    for faults in ([], ["too_many"]):
        proxy.plan(*faults)
        with pytest.raises(AlreadyExistsError):
            open_storage(f"{s3[0]}/x", settings).create("1.json", b"same")


def test_create_has_exactly_one_winner_through_faults(s3, seen, proxied, run_together):
    _, settings = proxied(0.3, [fault for fault in FAULTS if fault != "hang"])
    storage = open_storage(f"{s3[0]}/x", settings)
    for turn in range(5):
        results = run_together(*[lambda i=i, turn=turn: storage.create(f"{turn}", b"%d" % i) for i in range(6)])
        assert sorted(type(result).__name__ for result in results) == ["AlreadyExistsError"] * 5 + ["NoneType"]
        assert seen.read(f"{turn}") == b"%d" % results.index(None)


def test_no_more_requests_than_allowed_are_open_at_a_time(s3, seen, proxied, run_together):
    seen.write("a", b"1")
    proxy, settings = proxied(max_connections=2)
    now, most = [], []
    forward = proxy._server.RequestHandlerClass._forward

    def watched(handler, body):
        now.append(1)
        most.append(len(now))
        try:
            return forward(handler, body)
        finally:
            now.pop()

    proxy._server.RequestHandlerClass._forward = watched
    first, second = (open_storage(f"{s3[0]}/{prefix}", settings) for prefix in ("x", "y"))
    reads = [lambda: first.read("a")] * 6 + [lambda: list(second.list())] * 2
    results = run_together(*reads)
    assert results == [b"1"] * 6 + [[]] * 2
    assert max(most) <= 2


def test_a_parquet_file_is_read_through_faults(s3, seen, proxied):
    table = pa.table({"x": [random.Random(i).randbytes(5000) for i in range(40)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=5)
    seen.write("x.parquet", sink.getvalue().to_pybytes())
    proxy, settings = proxied(0.5, [fault for fault in FAULTS if fault != "hang"])
    storage = open_storage(f"{s3[0]}/x", settings)
    with storage.open("x.parquet", seen.stat("x.parquet").version) as handle:
        parquet = pq.ParquetFile(handle)
        assert pa.concat_tables(parquet.read_row_group(i) for i in range(8)).equals(table)
        assert pa.Table.from_batches(pq.ParquetFile(handle, pre_buffer=True).iter_batches(7)).equals(table)
    assert proxy.faults.total() > 3


def test_a_refusal_is_not_asked_again(s3, seen, proxied):
    seen.write("a", b"1")
    proxy, settings = proxied()
    storage = open_storage(f"{s3[0]}/x", settings)
    with pytest.raises(NotFoundError):
        storage.read("nothing")
    with pytest.raises(SourceChangedError):
        storage.read("a", '"another"')
    assert proxy.requests["GET"] == 2


# ---- Whole nights


def rows_of(night, config):
    return published(open_storage(config.store, config.storage), config.dataset)


def on_s3(tmp_path, png, bucket: str, name: str, settings: StorageSettings):
    """A night whose input and store are folders of a bucket."""
    night = Night(tmp_path / name, png)
    night.store = open_storage(f"{bucket}/{name}", settings)
    changes = {"storage": settings.model_dump(), "input": {"url": f"{bucket}/data", "shard_images": 20}}
    return night, night.config(**changes)


@pytest.fixture
def photos(s3, tmp_path, png, seen):
    """Two Parquet files in the bucket, one row of which is no picture."""
    night, data = Night(tmp_path, png), open_storage(f"{s3[0]}/data", s3[1])
    for name, first in (("a.parquet", 0), ("b.parquet", 100)):
        ids = list(range(first, first + 60))
        images = [png(i) if i != 107 else b"no picture" for i in ids]
        path = night.write(name, ids, image=pa.array(images, pa.binary()))
        data.write(name, path.read_bytes())
    return data


@pytest.mark.parametrize("seed", [1, 2])
def test_a_night_through_faults_gives_the_same_rows(s3, tmp_path, png, photos, proxied, seed):
    rows = {}
    proxy, through = proxied(0.2, seed=seed, timeout_s=1)
    for name, settings in (("clean", s3[1]), ("faulty", through)):
        night, config = on_s3(tmp_path, png, s3[0], name, settings)
        view = night.whole(config, night.seal())
        rows[name] = rows_of(night, config)
        assert view.document["counts"] == {"images_in": 120, "labelled": 119, "quarantined": 1}
    assert rows["faulty"] == rows["clean"]
    assert proxy.faults.total() > 10
    assert len(proxy.faults) > 5


def test_a_store_that_goes_away_and_comes_back_costs_time_only(s3, tmp_path, png, photos, proxied):
    proxy, through = proxied(timeout_s=1)
    night, config = on_s3(tmp_path, png, s3[0], "away", through)
    version = night.seal()
    plan = night.plan(config)
    proxy.refuse(8)
    ledger = night.label(config, plan, version)
    proxy.refuse(8)
    view, _ = night.publish(config, plan, version, ledger)
    assert view.document["counts"] == {"images_in": 120, "labelled": 119, "quarantined": 1}
    assert proxy.faults["reset"] == 16


def test_boto_reads_what_was_written_through_faults(s3, proxied):
    _, settings = proxied(0.3, ("cut_request", "swallow", "error"))
    storage, data = open_storage(f"{s3[0]}/x", settings), random.Random(0).randbytes(100_000)
    for i in range(20):
        storage.write(f"{i}", data)
    client = boto3.client("s3", endpoint_url=s3[1].endpoint, region_name="us-east-1")
    bodies = [client.get_object(Bucket=s3[0][5:], Key=f"x/{i}")["Body"].read() for i in range(20)]
    assert bodies == [data] * 20
