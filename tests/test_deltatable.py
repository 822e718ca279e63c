import json
import threading

import duckdb
import pyarrow as pa
import pytest

from pipeline import deltatable
from pipeline.deltatable import require_deltalake, sync_table
from pipeline.documents import advance
from pipeline.errors import ConfigError, StorageError, TransientError, UsageError
from pipeline.layout import published, table
from pipeline.publication import read_view
from pipeline.settings import StorageSettings
from pipeline.storage import join, open_storage
from pipeline.tables import read_table, write_table

deltalake = pytest.importorskip("deltalake")


def open_table(night):
    return deltalake.DeltaTable(join(night.store.url, table("data")))


def sync(night) -> bool:
    return sync_table(night.store, StorageSettings(), "data")


def names(handle) -> set[str]:
    return set(pa.table(handle.get_add_actions(flatten=True))["path"].to_pylist())


def ids(handle) -> list:
    return sorted(pa.table(handle.scan(columns=["image_id"]))["image_id"].to_pylist())


def log(night, version: int) -> list[dict]:
    text = night.store.read(f"{table('data')}/_delta_log/{version:020d}.json").decode()
    return [json.loads(line) for line in text.splitlines()]


def check_in_step(night) -> None:
    """The table has the view's files and rows, row by row, read by deltalake and DuckDB on one side, as files on the other."""
    view, handle = read_view(night.store, "data"), open_table(night)
    assert names(handle) == {path.removeprefix("labels/data/") for path in view.files}
    files = [join(night.store.url, path) for path in view.files]
    delta = pa.table(handle.scan())
    assert delta.num_rows == view.counts.labelled
    if files:
        base = duckdb.connect()
        base.register("delta", delta)
        base.sql(f"create view plain as select * from read_parquet({files}, union_by_name=true)")
        columns = ", ".join(base.sql("select * from plain").columns)
        rows = [base.sql(f"select {columns} from {source} order by uri").fetchall() for source in ("plain", "delta")]
        assert rows[0] == rows[1]


def test_table_is_in_step_with_every_view(night):
    config, version = night.config(input={"shard_images": 2}), night.seal()
    night.write("a.parquet", [1, 2, 3, 4], rows_per_group=2)
    for change in (
        lambda: None,
        lambda: night.write("b.parquet", [5, 6]),
        lambda: (night.data / "a.parquet").unlink(),
        lambda: night.write("c.parquet", [7, 7, 8]),
    ):
        change()
        view = night.whole(config, version)
        assert sync(night)
        assert open_table(night).transaction_version("nightshift.view") == view.n
        check_in_step(night)
        assert not sync(night)
    assert open_table(night).version() == 3


def list_files(storage, n: int, files: dict[str, pa.Table]) -> None:
    """Publish tables as view n without labelling them."""
    entries = [
        {**write_table(storage, f"labels/data/m@1/{name}", rows).to_json(), "shard_ids": [name], "generation": "m@1"}
        for name, rows in files.items()
    ]
    document = {"files": entries, "run_id": f"r-{n}", "quarantine": [], "quarantine_files": []}
    advance(storage, published("data"), document, n - 1)


def column(values, kind) -> pa.Table:
    return pa.table({"image_id": pa.array([str(n) for n in range(len(values))]), "extra": pa.array(values, kind)})


def test_log_has_the_number_of_rows_and_the_least_and_greatest_values(night):
    night.write("a.parquet", list(range(9)))
    view = night.whole(night.config(), night.seal())
    sync(night)
    (added,) = [line["add"] for line in log(night, 0) if "add" in line]
    statistics = json.loads(added["stats"])
    rows = read_table(night.store, view.files[0]).to_pylist()
    assert statistics["numRecords"] == 9
    for name in ("image_id", "confidence", "class_index", "label"):
        values = [row[name] for row in rows]
        assert (statistics["minValues"][name], statistics["maxValues"][name]) == (min(values), max(values))
    assert "content_hash" in statistics["minValues"]
    assert "top_k" not in statistics["minValues"]
    confident = max(row["confidence"] for row in rows)
    found = pa.table(open_table(night).scan(columns=["image_id"], predicate=f"confidence >= {confident:.6f} - 0.0001"))
    assert found.num_rows >= 1


def test_commit_names_the_view_and_the_run(night):
    night.write("a.parquet", [1])
    night.whole(night.config(), night.seal())
    sync(night)
    entry = open_table(night).history(1)[0]
    assert (entry["nightshift.view"], entry["nightshift.run"]) == (1, "night-1")


def test_what_a_crash_left_out_is_made_up_for_in_one_commit(night):
    config, version = night.config(input={"shard_images": 2}), night.seal()
    for number in range(3):
        night.write(f"{number}.parquet", [2 * number, 2 * number + 1])
        night.whole(config, version)
    assert sync(night)
    assert open_table(night).version() == 0
    check_in_step(night)


def test_slow_run_never_takes_the_table_back(night, monkeypatch):
    config, version = night.config(input={"shard_images": 2}), night.seal()
    night.write("a.parquet", [1, 2])
    old = night.whole(config, version)
    night.write("b.parquet", [3, 4])
    night.whole(config, version)
    sync(night)
    monkeypatch.setattr(deltatable, "read_view", lambda storage, dataset: old)
    assert not sync(night)
    assert ids(open_table(night)) == [1, 2, 3, 4]


def test_two_at_once_make_one_commit(night, run_together):
    config, version = night.config(input={"shard_images": 2}), night.seal()
    for number in range(3):
        night.write(f"{number}.parquet", [2 * number, 2 * number + 1])
        night.whole(config, version)
        done = run_together(*[lambda: sync(night)] * 4)
        assert sorted(done) == [False, False, False, True]
        assert open_table(night).version() == number
        check_in_step(night)


def test_commit_that_lost_is_made_again_from_what_the_winner_wrote(night, monkeypatch):
    config, version = night.config(input={"shard_images": 2}), night.seal()
    night.write("a.parquet", [1, 2])
    night.whole(config, version)
    sync(night)
    night.write("b.parquet", [3, 4])
    night.whole(config, version)
    real, calls = deltatable._difference, []

    def late(*arguments):
        change = real(*arguments)
        calls.append(change)
        if len(calls) == 1:  # meanwhile another run publishes more, and commits it
            night.write("c.parquet", [5, 6])
            night.whole(config, version)
            assert sync(night)
        return change

    monkeypatch.setattr(deltatable, "_difference", late)
    assert not sync(night)
    assert open_table(night).version() == 2 - 1
    check_in_step(night)


def test_table_that_others_change_all_the_time_is_given_up_on(night, monkeypatch):
    night.write("a.parquet", [1, 2])
    night.whole(night.config(), night.seal())
    monkeypatch.setattr(deltatable, "_create", lambda *_: False)
    with pytest.raises(TransientError, match="changed by others"):
        sync(night)


def test_first_view_without_labels_makes_an_empty_table_with_the_type_of_the_ids(night):
    config, version = night.config(input={"shard_images": 2}), night.seal()
    night.write("a.parquet", [1, 2], image=pa.array([b"bad", None], pa.binary()))
    night.whole(config, version)
    assert sync(night)
    assert ids(open_table(night)) == []
    assert pa.schema(open_table(night).schema().to_arrow()).field("image_id").type == pa.int64()
    night.write("b.parquet", [3, 4])
    night.whole(config, version)
    assert sync(night)
    check_in_step(night)


def test_no_view_no_table(night):
    assert not sync(night)
    assert not list(night.store.list("labels"))


def test_new_columns_are_added_and_old_rows_have_nothing_in_them(night):
    list_files(night.store, 1, {"a": column([1, 2], pa.int64()).drop_columns("extra")})
    sync(night)
    list_files(night.store, 2, {"b": column([7, 8], pa.int32()), "a": column([1, 2], pa.int64()).drop_columns("extra")})
    assert sync(night)
    assert sorted(pa.table(open_table(night).scan())["extra"].to_pylist(), key=str) == [7, 8, None, None]
    list_files(night.store, 3, {"c": column([9], pa.int64()).drop_columns("extra")})
    assert sync(night)
    assert pa.table(open_table(night).scan()).to_pylist() == [{"image_id": "0", "extra": None}]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.uint8(), [200]), (pa.int16(), [-3]), (pa.uint32(), [4_000_000_000]), (pa.int64(), [2**62]),
        (pa.dictionary(pa.int32(), pa.string()), ["x", "x"]), (pa.large_string(), ["x"]), (pa.bool_(), [True, None]),
        (pa.float32(), [0.5]), (pa.float64(), [0.1, float("nan")]), (pa.list_(pa.float32(), 2), [[0.5, 1.5]]),
        (pa.date32(), [None]), (pa.binary(), [b"x"]), (pa.struct([("a", pa.int64())]), [{"a": 1}]),
        (pa.string(), ["y" * 1000]),
    ],
    ids=str,
)  # fmt: skip
def test_columns_are_read_back_as_they_were(night, kind, values):
    list_files(night.store, 1, {"a": column(values, kind)})
    sync(night)
    assert str(pa.table(open_table(night).scan())["extra"].to_pylist()) == str(values)
    assert "y" * 1000 not in str(log(night, 0))


def test_integer_that_only_unsigned_ones_hold_is_a_decimal(night):
    list_files(night.store, 1, {"a": column([2**63 + 5], pa.uint64())})
    sync(night)
    assert [int(value) for value in pa.table(open_table(night).scan())["extra"].to_pylist()] == [2**63 + 5]


def test_times_are_read_to_the_microsecond(night):
    list_files(night.store, 1, {"a": column([5_000_001_000], pa.timestamp("ns"))})
    sync(night)
    (value,) = pa.table(open_table(night).scan())["extra"].to_pylist()
    assert (value.second, value.microsecond) == (5, 1)


def test_time_column_that_comes_later_is_added_too(night):
    list_files(night.store, 1, {"a": column([1], pa.int64()).drop_columns("extra")})
    sync(night)
    list_files(night.store, 2, {"b": column([5_000_000], pa.timestamp("us"))})
    assert sync(night)
    assert pa.table(open_table(night).scan())["extra"].to_pylist()[0].second == 5


def test_column_without_any_value_gets_its_type_from_later_files(night):
    list_files(night.store, 1, {"a": column([None], pa.null())})
    sync(night)
    list_files(night.store, 2, {"a": column([None], pa.null()), "b": column(["x"], pa.string())})
    assert sync(night)
    assert sorted(pa.table(open_table(night).scan())["extra"].to_pylist(), key=str) == [None, "x"]


@pytest.mark.parametrize("first", [{}, {"a": column([1], pa.int64())}], ids=["in the first commit", "later"])
def test_columns_that_contradict_each_other_are_refused_by_name(night, first):
    if first:
        list_files(night.store, 1, first)
        sync(night)
    list_files(night.store, 1 + len(first), {"a": column([1], pa.int64()), "b": column(["x"], pa.string())})
    with pytest.raises(UsageError, match=r"column extra has the type .* The view itself is published"):
        sync(night)
    assert not first or open_table(night).version() == 0


def test_column_that_no_delta_table_can_have_is_refused_by_name(night):
    list_files(night.store, 1, {"a": column([1], pa.time32("s"))})
    with pytest.raises(UsageError, match=r"the column extra has the type time32"):
        sync(night)


def test_file_of_another_size_under_the_same_name_is_named_again(night):
    list_files(night.store, 1, {"a": column([1], pa.int64())})
    sync(night)
    list_files(night.store, 2, {"a": column([1, 2, 3], pa.int64())})
    assert sync(night)
    assert pa.table(open_table(night).scan()).num_rows == 3
    assert not sync(night)


def test_table_of_someone_else_is_refused_and_left_alone(night):
    deltalake.write_deltalake(join(night.store.url, table("data")), pa.table({"theirs": [1]}))
    night.write("a.parquet", [1])
    night.whole(night.config(), night.seal())
    with pytest.raises(UsageError, match=r"a Delta table that nightshift did not make; .* Move it away"):
        sync(night)
    assert pa.table(open_table(night).scan()).to_pylist() == [{"theirs": 1}]


def test_damaged_log_is_said_with_the_place(night):
    night.write("a.parquet", [1])
    night.whole(night.config(), night.seal())
    sync(night)
    night.store.write(f"{table('data')}/_delta_log/{0:020d}.json", b"garbage")
    with pytest.raises(StorageError, match=r"the Delta table .*labels/data: .*the next run tries again"):
        sync(night)


def test_missing_package_is_said_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "deltalake", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[delta\]'"):
        require_deltalake(str(tmp_path), "data")


@pytest.mark.parametrize("place", [("/stores/50%41", "data"), ("/stores", "my%20data"), ("memory://x", "data")])
def test_place_where_no_table_can_be_kept_is_refused(place):
    with pytest.raises(ConfigError, match=r"output\.table is delta, but"):
        require_deltalake(*place)


@pytest.mark.parametrize("dataset", ["my data", "a#b?c", "größe", "x@y:z"])
def test_data_set_with_an_odd_name_has_its_table(tmp_path, dataset):
    require_deltalake(str(tmp_path), dataset)
    storage = open_storage(str(tmp_path), StorageSettings())
    written = write_table(storage, f"{table(dataset)}/m@1/a.parquet", column([1, 2], pa.int64()))
    document = {"files": [{**written.to_json(), "generation": "m@1"}], "quarantine": [], "quarantine_files": []}
    advance(storage, published(dataset), document, 0)
    assert sync_table(storage, StorageSettings(), dataset)
    handle = deltalake.DeltaTable(str(tmp_path / "labels" / dataset))
    assert pa.table(handle.scan()).num_rows == 2
    assert not sync_table(storage, StorageSettings(), dataset)


@pytest.mark.parametrize("folder", ["", "/my stores#1"])
def test_table_in_a_bucket(s3, run_together, folder):
    url, settings = s3
    storage = open_storage(url + folder, settings)
    for n in range(1, 4):
        list_files(storage, n, {f"{n}": column([1, 2], pa.int64()), f"{n}x": column([3], pa.int64())})
        done = run_together(*[lambda: sync_table(storage, settings, "data")] * 3)
        assert sorted(done) == [False, False, True]
        handle = deltalake.DeltaTable(
            deltatable._location(storage.url, "data"), storage_options=deltatable._options(url, settings)
        )
        assert names(handle) == {f"m@1/{n}", f"m@1/{n}x"}
        assert pa.table(handle.scan()).num_rows == 3
        assert handle.version() == n - 1


def test_anonymous_and_other_settings_reach_the_table():
    settings = StorageSettings(endpoint="http://host:1", region="eu", anonymous=True, requester_pays=True, timeout_s=5)
    assert deltatable._options("s3://b", settings) == {
        "timeout": "5s", "connect_timeout": "5s", "allow_http": "true", "aws_conditional_put": "etag",
        "aws_endpoint": "http://host:1", "aws_region": "eu", "aws_skip_signature": "true", "aws_request_payer": "true",
    }  # fmt: skip
    assert deltatable._options("gs://b", settings)["google_skip_signature"] == "true"
    assert deltatable._options("az://b", settings)["azure_endpoint"] == "http://host:1"


def test_relabelled_shard_leaves_the_files_of_older_snapshots_as_they_were(night):
    night.write("a.parquet", [1, 2, 3], image=pa.array([night.png(1), b"bad", night.png(3)], pa.binary()))
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    night.publish(config, plan, version, night.label(config, plan, version))
    sync(night)
    before = open_table(night)
    rows = pa.table(before.scan()).to_pylist()
    night.publish(config, plan, version, night.label(config, plan, version, "night-2"))
    assert sync(night)
    assert pa.table(before.scan()).to_pylist() == rows == pa.table(open_table(night).scan()).to_pylist()
    assert names(before).isdisjoint(names(open_table(night)))


def test_reader_during_many_nights_sees_one_whole_night_each_time(night):
    """Also while shards are relabelled, trimmed and joined, and whatever it lists can be read."""
    config, version = night.config(input={"shard_images": 1}, output={"compact_below": 100}), night.seal()
    allowed: set[frozenset[int]] = {frozenset()}
    seen, errors, stop = [], [], threading.Event()

    def poll() -> None:
        while not stop.is_set():
            try:
                found = ids(open_table(night))
                assert len(found) == len(set(found))
                seen.append(frozenset(found))
            except deltalake.exceptions.TableNotFoundError:
                continue
            except Exception as error:  # told by the test
                errors.append(error)
                return

    readers = [threading.Thread(target=poll) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(12):
        for image_id in range(5 * number, 5 * number + 5):
            night.write(f"{image_id}.parquet", [image_id])
        if number:
            (night.data / f"{5 * number - 3}.parquet").unlink()
        plan = night.plan(config)
        allowed.add(frozenset(int(s.path.removesuffix(".parquet")) for shard in plan.shards for s in shard.live))
        night.publish(config, plan, version, night.label(config, plan, version, f"night-{number}"))
        sync(night)
        check_in_step(night)
    stop.set()
    for reader in readers:
        reader.join()
    assert not errors
    assert len(set(seen)) > 3
    assert set(seen) <= allowed
