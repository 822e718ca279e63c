"""Every operation, and whole nights, against an S3 server behind a proxy that misbehaves on purpose."""

import os
import random
from dataclasses import replace
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Night, published
from faultproxy import FAULTS, FaultProxy

from pipeline.errors import AlreadyExistsError, NotFoundError, SourceChangedError, StorageError, TransientError
from pipeline.rowgroups import GroupReader
from pipeline.rows import ShardReader
from pipeline.settings import StorageSettings
from pipeline.storage import FileStorage, open_storage


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
    with pytest.raises(TransientError, match=r"s3://nightshift\w+/x.*503"):
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
    forward = proxy.handler._forward

    def watched(handler, body):
        now.append(1)
        most.append(len(now))
        try:
            return forward(handler, body)
        finally:
            now.pop()

    proxy.handler._forward = watched
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
    found = {}
    proxy, through = proxied(0.2, seed=seed, timeout_s=1)
    for name, settings in (("clean", s3[1]), ("faulty", through)):
        night, config = on_s3(tmp_path, png, s3[0], name, settings)
        view = night.whole(config, night.seal())
        found[name] = rows_of(night, config)
        assert view.document["counts"] == {"images_in": 120, "labelled": 119, "quarantined": 1}
    assert found["faulty"] == found["clean"]
    assert proxy.faults.total() > 10
    assert len(proxy.faults) > 5


@pytest.mark.chaos
def test_the_actors_of_a_ray_session_outlast_faults_too(ray_session, s3, tmp_path, png, photos, proxied, nightshift):
    proxy, through = proxied(0.2, seed=3, timeout_s=2)
    clean, config = on_s3(tmp_path, png, s3[0], "clean", s3[1])
    clean.whole(config, clean.seal())
    expected = rows_of(clean, config)
    night, config = on_s3(tmp_path, png, s3[0], "actors", through)
    night.seal()
    ended = nightshift(
        config.model_copy(update={"label": config.label.model_copy(update={"max_workers": 2})}), "nightly"
    )
    assert ended.code == 0, ended.said
    assert [ended.record[key] for key in ("images_in", "labelled", "quarantined", "failed_shards")] == [120, 119, 1, 0]
    assert rows_of(night, config) == expected
    assert proxy.faults.total() > 10


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


# ---- Files that change between plan and label, or under the reader


class Folder:
    """Where a test's input lies: a folder of this machine, or of the bucket. `write` puts a new version there."""

    def __init__(self, url: str, settings: StorageSettings) -> None:
        self.url, self.settings, self._storage = url, settings, open_storage(url, settings)

    def write(self, name: str, data: bytes) -> None:
        if self.url.startswith("s3://"):
            return self._storage.write(name, data)
        path = Path(self.url) / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)  # in place, as who copies a file over another does
        return None

    def delete(self, name: str) -> None:
        self._storage.delete(name)


@pytest.fixture(params=["file", "s3"])
def inputs(request, s3, tmp_path):
    return (
        Folder(str(tmp_path / "photos"), StorageSettings())
        if request.param == "file"
        else Folder(f"{s3[0]}/photos", s3[1])
    )


def parquet(png, ids) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"id": ids, "image": pa.array([png(i) for i in ids], pa.binary()), "label": ["ant"] * len(ids)})
    pq.write_table(table, sink, row_group_size=5)
    return sink.getvalue().to_pybytes()


def amid_reading(monkeypatch, change):
    """Call `change` once, when the first file's footer has been read and its rows have not."""
    groups, left = GroupReader.groups, [change]

    def changing(*arguments):
        found = groups(*arguments)
        if left:
            left.pop()()
        return found

    monkeypatch.setattr(GroupReader, "groups", changing)


@pytest.mark.parametrize("what", ["changed", "changed amid reading", "vanished", "vanished amid reading"])
def test_a_file_that_is_not_as_planned_fails_its_shard_and_the_next_night_takes_it_as_it_is(
    inputs, night, png, nightshift, local_ray, monkeypatch, what
):
    night.seal()
    inputs.write("a.parquet", parquet(png, range(10)))
    inputs.write("b.parquet", parquet(png, range(20, 30)))
    config = night.config(
        storage=inputs.settings.model_dump(), input={"url": inputs.url, "shard_images": 10, "max_vanished_fraction": 1}
    )
    assert nightshift(config, "plan").code == 0

    def change():
        inputs.write("a.parquet", parquet(png, range(40, 50))) if "changed" in what else inputs.delete("a.parquet")

    amid_reading(monkeypatch, change) if "amid" in what else change()
    ended = nightshift(config, "label")
    [failure] = ended.record["failures"]
    assert ended.code == 3
    assert failure["error"].startswith("SourceChangedError")
    assert failure["attempts"] == 1
    assert f"a.parquet {what.split()[0]} since it was planned" in failure["error"]
    assert (ended.record["labelled"], ended.record["failed_shards"]) == (10, 1)
    assert len([entry for entry in night.store.list("ledger") if entry.path.endswith(".json")]) == 1
    assert [row[0] for row in published(night.store, "photos")] == list(range(20, 30))
    again = nightshift(config, "nightly")
    assert again.code == 0
    expected = [*range(20, 30), *(range(40, 50) if "changed" in what else ())]
    assert [row[0] for row in published(night.store, "photos")] == expected
    assert again.record["labelled"] == len(expected) - 10


def test_garbage_that_a_reader_meets_is_a_change_when_the_file_is_another_by_now(tmp_path, png, night, monkeypatch):
    """Where the file's age cannot show it (a copy that keeps times, a coarse clock), the reader stumbles first."""
    path = night.write("a.parquet", range(20))
    config = night.config()
    plan, reader = night.plan(config), ShardReader(config.input, config.storage)
    original = path.stat()

    def damage():
        data = bytearray(path.read_bytes())
        data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
        path.write_bytes(data)
        os.utime(path, ns=(original.st_atime_ns, original.st_mtime_ns))

    amid_reading(monkeypatch, damage)
    stat = FileStorage.stat
    monkeypatch.setattr(FileStorage, "stat", lambda self, name: replace(stat(self, name), version="another"))
    with pytest.raises(SourceChangedError, match=r"a\.parquet changed since it was planned"):
        list(reader.read(plan.shards[0]))
    monkeypatch.setattr(FileStorage, "stat", stat)
    with pytest.raises(StorageError, match=r"a\.parquet: damaged rows"):
        list(reader.read(plan.shards[0]))
