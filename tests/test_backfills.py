import pytest
from conftest import published

from pipeline.publication import read_view
from pipeline.tables import read_table


@pytest.fixture
def model(night):
    return night.seal()


def counts(record):
    return tuple(record[key] for key in ("images_in", "labelled", "quarantined", "skipped", "failed_shards"))


def write_days(night, days=("2026-11-23", "2026-11-24", "2026-11-25"), count=10):
    for number, day in enumerate(days):
        (night.data / f"day={day}").mkdir(parents=True, exist_ok=True)
        first = number * count
        night.write(f"day={day}/a.parquet", range(first, first + count), price=[i % 4 for i in range(count)])


def ids(night) -> list[int]:
    return [row[0] for row in published(night.store, "data")]


def test_a_backfill_labels_its_partitions_and_the_rest_of_the_view_stays(night, model, nightshift, local_ray):
    write_days(night)

    def label(*predicates):
        return nightshift(night.config(input={"filter": list(predicates)}), "label").record

    day = label(("day", "=", "2026-11-24"))
    assert counts(day) == (10, 10, 0, 0, 0)
    assert ids(night) == list(range(10, 20))
    more = label(("day", "<", "2026-11-24"))
    assert counts(more) == (10, 10, 0, 10, 0)
    assert ids(night) == list(range(20))
    whole = label()
    assert counts(whole) == (10, 10, 0, 20, 0)
    assert ids(night) == list(range(30))
    assert day["fingerprint"] == more["fingerprint"] == whole["fingerprint"], "all of one generation"
    assert counts(label(("day", "=", "2026-11-24"))) == (0, 0, 0, 30, 0)
    assert ids(night) == list(range(30))


def test_a_filter_on_rows_is_another_question_and_counts_what_matches(night, model, nightshift, local_ray):
    write_days(night)
    predicates = [("day", ">=", "2026-11-24"), ("price", ">=", 2)]
    config = night.config(input={"filter": predicates, "shard_images": 7}, label={"columns": ["day", "price"]})
    some = nightshift(config, "label").record
    assert counts(some) == (8, 8, 0, 0, 0)
    assert ids(night) == [12, 13, 16, 17, 22, 23, 26, 27]
    files = read_view(night.store, "data").files
    rows = [row for path in files for row in read_table(night.store, path).to_pylist()]
    assert sorted((row["image_id"], row["day"], row["price"]) for row in rows) == [
        (i, f"2026-11-2{3 + i // 10}", i % 10 % 4) for i in ids(night)
    ]
    again = nightshift(config, "label").record
    assert counts(again) == (0, 0, 0, 8, 0)
    assert nightshift(night.config(), "label").record["fingerprint"] != some["fingerprint"]


def test_a_backfill_by_another_model_does_not_replace_the_view_before_it_is_complete(
    night, model, nightshift, local_ray
):
    write_days(night)
    nightshift(night.config(), "label")
    rows, other = published(night.store, "data"), {"version": night.seal(seed=1)}

    def label(*predicates):
        return nightshift(night.config(input={"filter": list(predicates)}, model=other), "label")

    part = label(("day", "=", "2026-11-24"))
    assert part.code == 3
    assert "replace the view only when every shard has them, and 2 shards with 20 images do not" in part.said
    assert published(night.store, "data") == rows
    rest = label()
    assert (rest.code, counts(rest.record)) == (0, (20, 20, 0, 10, 0))
    assert read_view(night.store, "data").n == 2


def test_a_filter_that_does_not_fit_is_said_by_label_and_nothing_is_published(night, model, nightshift, local_ray):
    write_days(night)
    nightshift(night.config(), "label")
    for predicate, words in ((("prize", "=", 1), "no column 'prize' (input.filter); did you mean 'price'?"),
                             (("price", "=", "x"), "give a number, without quotes")):  # fmt: skip
        ended = nightshift(night.config(input={"filter": [predicate]}), "label")
        assert ended.code == 2
        assert words in ended.said
        assert read_view(night.store, "data").n == 1


def test_deleted_images_leave_the_view_and_a_vanished_input_does_not_empty_it(night, model, nightshift, local_ray):
    for number in range(10):
        night.write(f"{number}.parquet", range(number * 10, number * 10 + 10))
    nightshift(night.config(), "nightly")
    (night.data / "3.parquet").unlink()
    second = nightshift(night.config(), "nightly")
    assert second.code == 0
    assert "new 0, changed 0, deleted 10 images" in second.said
    assert ids(night) == [i for i in range(100) if i // 10 != 3]
    night.data.rename(night.data.with_name("unmounted"))
    held = nightshift(night.config(), "nightly")
    assert held.code == 3
    assert "90 of 90 known images (100%) are gone" in held.said
    assert read_view(night.store, "data").n == 2
    night.data.with_name("unmounted").rename(night.data)
    assert nightshift(night.config(), "nightly").code == 0
    assert len(ids(night)) == 90
