import shutil
from dataclasses import replace

import duckdb
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.counts import Counts
from pipeline.documents import advance
from pipeline.errors import IntegrityError
from pipeline.ledger import mismatched, read_ledger
from pipeline.publication import publish, read_view
from pipeline.storage import join
from pipeline.tables import read_table


def images(night, *data: bytes | None) -> pa.Array:
    return pa.array([night.png(n) if item == b"good" else item for n, item in enumerate(data)], pa.binary())


def rows(night, paths) -> list[dict]:
    return [row for path in paths for row in read_table(night.store, path).to_pylist()]


def ids(night, paths) -> list:
    return [row["image_id"] for row in rows(night, paths)]


def check_books(night, view) -> None:
    """N in = labelled + quarantined, in the view's counts and in its files alike."""
    view.counts.check("view")
    assert len(rows(night, view.files)) == view.counts.labelled
    assert len(rows(night, view.document["quarantine_files"])) == view.counts.quarantined


def test_view_lists_the_live_files_and_no_others(night):
    night.write("a.parquet", [1, 2, 3])
    night.write("b.parquet", [4, 5], image=images(night, b"good", b"bad"))
    config, version = night.config(input={"shard_images": 3}), night.seal()
    asked = night.task(config, version).generation
    night.store.write(asked.labels("stray", "other"), b"of an attempt that never committed")
    view = night.whole(config, version)
    assert view.n == 1
    assert sorted(ids(night, view.files)) == [1, 2, 3, 4]
    assert ids(night, view.document["quarantine_files"]) == [5]
    assert view.counts == Counts(5, 4, 1)
    assert view.document["generation"] == asked.name
    assert read_view(night.store, "data") == view
    check_books(night, view)


def test_shard_without_a_single_label_belongs_to_the_view(night):
    """Else it would count as new, and as wholly bad, in every later night."""
    night.write("a.parquet", [1, 2])
    night.write("b.parquet", [3, 4], image=images(night, b"bad", b"bad"))
    config, version = night.config(input={"shard_images": 2}), night.seal()
    view = night.whole(config, version)
    assert len(view.files) == 1
    assert view.shard_ids == {shard.id for shard in night.plan(config).shards}
    check_books(night, view)


def test_copy_that_was_deleted_is_made_again_under_a_new_view(night):
    night.write("a.parquet", [1, 2, 2])
    config, version = night.config(), night.seal()
    first = night.whole(config, version)
    night.store.delete(first.files[0])
    second = night.whole(config, version)
    assert (second.n, second.files) == (2, first.files)
    assert sorted(ids(night, second.files)) == [1, 2]


def test_there_is_no_view_before_the_first(night):
    assert read_view(night.store, "data") is None


def test_shard_that_is_not_committed_is_left_out(night):
    night.write("a.parquet", [1, 2, 3])
    night.write("b.parquet", [4, 5])
    config, version = night.config(input={"shard_images": 3}), night.seal()
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    del ledger[plan.shards[0].id]
    view, _ = night.publish(config, plan, version, ledger)
    assert view.shard_ids == {plan.shards[1].id}
    assert view.counts == Counts(2, 2, 0)


def test_identical_content_publishes_nothing(night):
    night.write("a.parquet", [1, 2, 2])
    config, version = night.config(), night.seal()
    first = night.whole(config, version)
    plan = night.plan(config)
    again, new = night.publish(config, plan, version, night.label(config, plan, version))
    assert (again, new) == (first, False)
    assert [entry.path for entry in night.store.list("published")] == ["published/data/1.json"]


def vanish(night, config, version):
    """Label two files of one shard, then let the first vanish; return the old rows and the new view."""
    night.write("a.parquet", [1, 2, 3], image=images(night, b"good", b"bad", b"good"))
    night.write("b.parquet", [4, 5, 6, 7], image=images(night, b"good", b"bad", b"good", b"good"))
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    before = night.publish(config, plan, version, ledger)[0]
    (night.data / "a.parquet").unlink()
    shutil.rmtree(night.data.parent / "store" / "models")  # whoever wanted to compute labels again could not
    return before, night.publish(config, night.plan(config), version, ledger)


def test_rows_of_vanished_files_are_trimmed_by_copying(night):
    before, (after, new) = vanish(night, night.config(), night.seal())
    assert new
    assert after.n == 2
    assert sorted(ids(night, before.files)) == [1, 3, 4, 6, 7]
    assert rows(night, after.files) == [row for row in rows(night, before.files) if row["image_id"] >= 4]
    schemas = [read_table(night.store, view.files[0]).schema for view in (before, after)]
    assert schemas[0].equals(schemas[1], check_metadata=True)
    check_books(night, after)


def test_quarantined_rows_of_vanished_files_are_trimmed_too(night):
    before, (after, _) = vanish(night, night.config(), night.seal())
    assert ids(night, before.document["quarantine_files"]) == [2, 5]
    assert ids(night, after.document["quarantine_files"]) == [5]
    assert after.counts == Counts(4, 3, 1)


def test_files_that_a_view_lists_stay_as_they_are_when_the_next_view_trims(night):
    before, _ = vanish(night, night.config(), night.seal())
    assert sorted(ids(night, before.files)) == [1, 3, 4, 6, 7]
    check_books(night, before)


def test_files_of_which_nothing_is_left_are_not_listed(night):
    night.write("a.parquet", [1, 2], image=images(night, b"bad", b"good"))
    night.write("b.parquet", [3, 4], image=images(night, b"bad", b"bad"))
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    (night.data / "a.parquet").unlink()
    view, _ = night.publish(config, night.plan(config), version, ledger)
    assert view.files == []
    assert ids(night, view.document["quarantine_files"]) == [3, 4]
    check_books(night, view)


@pytest.mark.parametrize(
    "kind",
    [pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_repeated_ids_are_quarantined_with_both_locations(night, kind):
    def typed(*values: int) -> pa.Array:
        if pa.types.is_dictionary(kind):
            return pa.array([str(value) for value in values]).dictionary_encode()
        return pa.array(values).cast(kind)

    night.write("a.parquet", typed(1, 2, 1))
    night.write("b.parquet", typed(3, 2))
    night.write("c.parquet", typed(4, 5))
    config, version = night.config(input={"shard_images": 3}), night.seal()
    view = night.whole(config, version)
    assert ids(night, view.files) == typed(1, 2, 3, 4, 5).to_pylist()
    repeated = rows(night, view.document["quarantine_files"])
    assert [(row["uri"], row["stage"], row["reason"]) for row in repeated] == [
        ("a.parquet#2", "publish", "duplicate_id"),
        ("b.parquet#1", "publish", "duplicate_id"),
    ]
    assert "is at a.parquet#0 (kept) and again at a.parquet#2 (left out)" in repeated[0]["message"]
    assert "is at a.parquet#1 (kept) and again at b.parquet#1 (left out)" in repeated[1]["message"]
    assert [row["image_id"] for row in repeated] == typed(1, 2).to_pylist()
    assert view.document["duplicates"] == 2
    assert view.counts == Counts(7, 5, 2)
    check_books(night, view)


def test_file_that_only_repeats_another_is_left_out_whole(night):
    night.write("a.parquet", [1, 2])
    night.write("copy.parquet", [1, 2])
    view = night.whole(night.config(input={"shard_images": 2}), night.seal())
    assert ids(night, view.files) == [1, 2]
    assert len(view.files) == 1
    assert view.counts == Counts(4, 2, 2)
    check_books(night, view)


def test_repeated_ids_of_files_that_differ_in_type_are_written_as_text(night):
    night.write("a.parquet", pa.array([1, 2], pa.int64()))
    night.write("b.parquet", pa.array([2, 3], pa.int32()))
    night.write("c.parquet", pa.array(["3", "4"]))
    view = night.whole(night.config(input={"shard_images": 2}), night.seal())
    assert sorted(map(str, ids(night, view.files))) == ["1", "2", "3", "4"]
    assert ids(night, view.document["quarantine_files"]) == ["2", "3"]


def test_id_whose_first_row_vanished_is_no_duplicate(night):
    night.write("a.parquet", [1, 2])
    night.write("b.parquet", [2, 3])
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    assert night.publish(config, plan, version, ledger)[0].counts == Counts(4, 3, 1)
    (night.data / "a.parquet").unlink()
    view, _ = night.publish(config, night.plan(config), version, ledger)
    assert ids(night, view.files) == [2, 3]
    assert view.counts == Counts(2, 2, 0)


def test_view_of_an_older_plan_never_replaces_one_of_a_newer_plan(night):
    night.write("a.parquet", [1, 2])
    config, version = night.config(), night.seal()
    old = night.plan(config)
    ledger = night.label(config, old, version)
    night.write("b.parquet", [3])
    newer = night.whole(config, version)
    late, new = night.publish(config, old, version, ledger)
    assert (late, new) == (newer, False)
    assert read_view(night.store, "data").counts.labelled == 3


def test_publishers_at_once_take_consecutive_numbers_and_make_one_history(night, run_together):
    night.write("a.parquet", list(range(8)))
    config = night.config()
    plan, versions = night.plan(config), [night.seal(seed=seed) for seed in range(5)]
    ledgers = [night.label(config, plan, version) for version in versions]
    publishers = [
        lambda v=version, books=ledger: night.publish(config, plan, v, books)
        for version, ledger in zip(versions, ledgers, strict=True)
    ]
    results = run_together(*publishers)
    assert sorted(view.n for view, _ in results) == [1, 2, 3, 4, 5]
    assert all(new for _, new in results)
    for view, _ in results:
        stored = night.store.read(f"published/data/{view.n}.json")
        assert view.document["generation"].encode() in stored
    assert read_view(night.store, "data") == max((view for view, _ in results), key=lambda view: view.n)


def test_publishers_of_the_same_content_publish_it_once(night, run_together):
    night.write("a.parquet", list(range(8)))
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    results = run_together(*[lambda: night.publish(config, plan, version, ledger)] * 4)
    assert sorted(new for _, new in results) == [False, False, False, True]
    assert {view.n for view, _ in results} == {1}


def test_books_that_do_not_balance_are_not_published(night):
    night.write("a.parquet", [1, 2])
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    ((shard_id, entry),) = night.label(config, plan, version).items()
    cooked = {shard_id: replace(entry, segments={key: [3, 2, 0] for key in entry.segments})}
    with pytest.raises(IntegrityError, match=r"3 images in, but 2 labelled \+ 0 quarantined"):
        publish(night.store, [(night.task(config, version).generation, cooked)], plan, {})
    assert read_view(night.store, "data") is None


def test_duckdb_and_pandas_read_the_files(night):
    night.write("a.parquet", list(range(20)), image=images(night, *[b"good"] * 17, b"bad", None, b""))
    view = night.whole(night.config(), night.seal())
    files = [join(night.store.url, path) for path in view.files]
    counted = dict(duckdb.sql(f"select label, count(*) from read_parquet({files}) group by label").fetchall())
    frame = pandas.concat(pandas.read_parquet(file) for file in files)
    assert sum(counted.values()) == len(frame) == view.counts.labelled == 17
    assert frame["label"].value_counts().to_dict() == counted
    assert frame["image_id"].tolist() == list(range(17))
    bad = [join(night.store.url, path) for path in view.document["quarantine_files"]]
    reasons = duckdb.sql(f"select reason from read_parquet({bad}) order by image_id").fetchall()
    assert reasons == [("not_an_image",), ("null",), ("empty",)]
    best = duckdb.sql(f"select top_k[1].label = label, top_k[1].probability = confidence from read_parquet({files})")
    assert set(best.fetchall()) == {(True, True)}


def test_schema_survives_in_the_published_files(night):
    night.write("a.parquet", [1, 1])
    view = night.whole(night.config(), night.seal())
    kinds = [
        pq.read_schema(join(night.store.url, path)).metadata[b"nightshift.schema"]
        for path in view.files + view.document["quarantine_files"]
    ]
    assert kinds == [b"predictions/1", b"quarantine/1"]


def test_relabelled_shard_leaves_the_files_of_older_views_as_they_were(night):
    """Also when it has other rows then: a reader of the old view would count them."""
    night.write("a.parquet", [1, 2, 3], image=images(night, b"good", b"bad", b"good"))
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    old, _ = night.publish(config, plan, version, night.label(config, plan, version))
    before = [night.store.read(path) for path in old.files + old.document["quarantine_files"]]
    new, is_new = night.publish(config, plan, version, night.label(config, plan, version, "night-2"))
    assert is_new
    assert set(old.files + old.document["quarantine_files"]).isdisjoint(new.files + new.document["quarantine_files"])
    assert [night.store.read(path) for path in old.files + old.document["quarantine_files"]] == before
    check_books(night, new)


def test_of_two_runs_at_once_the_last_entry_names_its_own_files(night):
    night.write("a.parquet", [1, 2], image=images(night, b"good", b"bad"))
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    ((shard_id, first),) = night.label(config, plan, version, "one").items()
    night.label(config, plan, version, "two")
    asked = night.task(config, version).generation
    ledger = read_ledger(night.store, asked, plan.shards)
    assert ledger[shard_id].run_id == "two"
    assert ledger[shard_id].labels.path == asked.labels(shard_id, "two") != first.labels.path
    assert mismatched(night.store, asked, ledger) == []
    check_books(night, night.publish(config, plan, version, ledger)[0])


def test_attempts_of_one_run_write_the_same_files(night):
    night.write("a.parquet", [1, 2], image=images(night, b"good", b"bad"))
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    assert night.label(config, plan, version).keys() == night.label(config, plan, version).keys()
    assert len(list(night.store.list("labels"))) == len(list(night.store.list("quarantine"))) == 1


def test_view_of_several_generations_takes_each_shard_from_the_first_that_has_it(night):
    night.write("a.parquet", [1, 2])
    night.write("b.parquet", [3, 4], image=images(night, b"good", b"bad"))
    config, versions = night.config(input={"shard_images": 2}), [night.seal(seed=seed) for seed in range(2)]
    plan = night.plan(config)
    old, new = ((night.task(config, v).generation, night.label(config, plan, v)) for v in versions)
    del new[1][plan.shards[0].id]
    about = {"model": f"tiny@{versions[1]}"}
    view, _ = publish(night.store, [new, old], plan, about, config.output)
    assert view.generations == {plan.shards[0].id: old[0].name, plan.shards[1].id: new[0].name}
    assert [(file["generation"], file["model"]) for file in view.document["files"]] == [
        (old[0].name, f"tiny@{versions[0]}"), (new[0].name, f"tiny@{versions[1]}"),
    ]  # fmt: skip
    assert [row["model"] for row in rows(night, view.files)] == [f"tiny@{versions[0]}"] * 2 + [f"tiny@{versions[1]}"]
    assert view.document["generation"] == new[0].name
    check_books(night, view)
    assert publish(night.store, [new, old], plan, about, config.output) == (view, False)
    only_old, is_new = publish(night.store, [old], plan, {"model": f"tiny@{versions[0]}"}, config.output)
    assert is_new
    assert set(only_old.generations.values()) == {old[0].name}


def test_nights_of_small_files_keep_a_short_list_and_every_row(night):
    """Images come, change, vanish, repeat and are relabelled; the list of files stays short and the books balance."""
    config = night.config(input={"shard_images": 2}, output={"compact_below": 1000})
    version, live, longest = night.seal(), {}, 0
    for number in range(25):
        for file in range(number, number + 4):
            own = [10 * file, 10 * file + 1, 7 if file % 9 == 0 else 10 * file + 2]
            live[f"{file}.parquet"] = own
            night.write(
                f"{file}.parquet", own, image=images(night, b"good", b"bad" if file % 5 == 0 else b"good", b"good")
            )
        if number % 3 == 2:
            (night.data / f"{number - 2}.parquet").unlink()
            del live[f"{number - 2}.parquet"]
        plan = night.plan(config)
        ledger = read_ledger(night.store, night.task(config, version).generation, plan.shards)
        todo = [shard for shard in plan.shards if shard.id not in ledger or (number == 20 and len(shard.segments) == 1)]
        ledger |= night.label(config, replace(plan, shards=tuple(todo)), version, f"night-{number}")
        view, _ = night.publish(config, plan, version, ledger)
        check_books(night, view)
        assert view.shard_ids == {shard.id for shard in plan.shards}
        wanted = {i for file, own in live.items() for n, i in enumerate(own) if n != 1 or int(file.split(".")[0]) % 5}
        assert sorted(ids(night, view.files)) == sorted(wanted)
        longest = max(longest, len(view.files), len(view.document["quarantine_files"]))
    assert any("/compacted/" in path for path in view.files)
    assert longest <= 2 * 17


def test_files_with_other_rows_than_the_ledger_says_are_not_published(night):
    night.write("a.parquet", [1, 2])
    config, version = night.config(), night.seal()
    plan = night.plan(config)
    ((shard_id, entry),) = night.label(config, plan, version).items()
    cooked = {shard_id: replace(entry, labels=replace(entry.labels, rows=5))}
    with pytest.raises(
        IntegrityError, match=r"the ledger says 2 labelled and 0 quarantined rows, the files .* hold 5 and 0"
    ):
        publish(night.store, [(night.task(config, version).generation, cooked)], plan, {})
    assert read_view(night.store, "data") is None


def test_view_that_an_older_nightshift_published_is_read_and_followed(night):
    night.write("a.parquet", [1, 2])
    night.write("b.parquet", [3], image=images(night, b"bad"))
    config, version = night.config(input={"shard_images": 2}), night.seal()
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    labelled, empty = (shard.id for shard in plan.shards)
    document = {
        "dataset": "data", "generation": "tiny@1", "fingerprint": "1", "plan": 1, "content": "old", "model": "tiny@v",
        "counts": {"images_in": 3, "labelled": 2, "quarantined": 1}, "duplicates": 0, "quarantine_files": ["q"],
        "files": [{"shard_id": labelled, **ledger[labelled].labels.to_json()}], "shards_without_labels": [empty],
    }  # fmt: skip
    advance(night.store, "published/data", document, 0)
    assert read_view(night.store, "data").generations == {labelled: "tiny@1", empty: "tiny@1"}
    view, new = night.publish(config, plan, version, ledger)
    assert (view.n, new) == (2, True)
    check_books(night, view)


def test_second_night_reads_no_label_file_of_the_first(night, monkeypatch):
    config, version = night.config(input={"shard_images": 2}), night.seal()
    night.write("a.parquet", [1, 2, 3, 4], rows_per_group=2)
    first = night.whole(config, version)
    night.write("b.parquet", [5, 6])
    plan = night.plan(config)
    ledger = night.label(config, plan, version)
    read = []
    real = type(night.store).read
    monkeypatch.setattr(type(night.store), "read", lambda self, path, v=None: read.append(path) or real(self, path, v))
    view, _ = night.publish(config, plan, version, ledger)
    assert {path for path in read if path.startswith("labels/")} == set(view.files) - set(first.files)
