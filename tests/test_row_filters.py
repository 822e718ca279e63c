import pyarrow as pa
import pytest
from reading import PLAIN, columns, shards_of, values

from pipeline import rows as rows_module
from pipeline.errors import InputError
from pipeline.rows import Row, ShardReader
from pipeline.settings import InputSettings
from pipeline.shards import Shard

# ---- The filter's rows


def sighted(
    settings: InputSettings, shards: list[Shard] | None = None
) -> tuple[ShardReader, list[Row], dict[str, int]]:
    """Return a reader, the rows that the filter takes, and by segment how many the reader says that these are."""
    reader, rows, matched = ShardReader(settings, PLAIN), [], {}
    for shard in shards or shards_of(settings):
        rows += [row for batch in reader.read(shard, 7) for row in batch]
        matched |= reader.matched(shard)
    return reader, rows, matched


def test_only_rows_that_match_are_there_and_they_keep_their_places(tmp_path, write_parquet, table_input):
    price = pa.array([i % 10 if i % 7 else None for i in range(50)])
    write_parquet(tmp_path / "a.parquet", {**columns(50), "price": price})
    settings = table_input(tmp_path, shard_images=20, filter=[("price", ">=", 8), ("id", "<", 45)])
    expected = [i for i in range(45) if price[i].as_py() is not None and price[i].as_py() >= 8]
    _, rows, matched = sighted(settings)
    assert values(rows, "image_id") == values(rows, "position") == expected
    assert values(rows, "data") == [b"%d" % i for i in expected]
    assert values(rows, "uri") == [f"a.parquet#{i}" for i in expected]
    assert values(rows, "label") == [f"l{i % 3}" for i in expected]
    assert len(matched) == 3
    assert sum(matched.values()) == len(expected)
    for row in rows:
        matched[row.segment] -= 1
    assert set(matched.values()) == {0}


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary(), pa.struct([("bytes", pa.binary())])], ids=str)
def test_a_filter_goes_with_every_type_of_image(tmp_path, write_parquet, table_input, kind):
    cells = [{"bytes": b"%d" % i} if pa.types.is_struct(kind) else b"%d" % i for i in range(9)]
    table = {"id": range(9), "image": pa.array(cells, kind), "label": ["l"] * 9}
    write_parquet(tmp_path / "a.parquet", table)
    assert values(sighted(table_input(tmp_path, filter=[("id", "in", (2, 5))]))[1], "data") == [b"2", b"5"]


def test_images_of_row_groups_without_a_match_are_not_read(tmp_path, write_parquet, table_input, monkeypatch):
    """Group 0 is ruled out by its statistics, group 1 by its column: 1 and 9 are in it, 5 is not."""
    first = [0] * 10 + [1, 9] * 5 + [4, 5] * 5
    write_parquet(tmp_path / "a.parquet", {**columns(30), "n": first})
    asked, real = [], rows_module.GroupReader.batches

    def watch(self, groups, names, batch_size):
        asked.append(([group.index for group in groups], list(names)))
        return real(self, groups, names, batch_size)

    monkeypatch.setattr(rows_module.GroupReader, "batches", watch)
    _, rows, _ = sighted(table_input(tmp_path, filter=[("n", "=", 5)]))
    assert asked == [([1], ["n"]), ([2], ["n"]), ([2], ["image", "id", "label"])]
    assert values(rows, "image_id") == [21, 23, 25, 27, 29]


def test_a_shard_without_a_match_has_no_rows_and_says_so(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "a.parquet", columns(30))
    _, rows, matched = sighted(table_input(tmp_path, filter=[("id", ">", 100)]))
    assert rows == []
    assert list(matched.values()) == [0]


def test_locations_that_are_not_asked_for_are_not_fetched(tmp_path, write_parquet, monkeypatch):
    write_parquet(tmp_path / "a.parquet", {"id": [1, 2, 3], "uri": ["a", "b", "c"]})
    fetched = []
    monkeypatch.setattr("pipeline.rows.fetch", lambda uri, *arguments: fetched.append(uri) or b"x")
    _, rows, _ = sighted(InputSettings(url=str(tmp_path), uri_column="uri", id_column="id", filter=[("id", "=", 2)]))
    assert (fetched, values(rows, "image_id")) == (["b"], [2])


def test_a_csv_is_filtered_by_what_its_text_spells(tmp_path):
    lines = [f"{i:03d},{i}.png,{price}" for i, price in enumerate(["9", "10", "", "x", "11.5", "2"])]
    (tmp_path / "a.csv").write_text("\n".join(["id,place,price", *lines]) + "\n")
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(b"%d" % i)
    named = {"uri_column": "place", "id_column": "id", "shard_images": 2}
    settings = InputSettings(url=str(tmp_path), **named, filter=[("price", ">", 9.5)])
    _, rows, matched = sighted(settings)
    assert values(rows, "image_id") == ["001", "004"]
    assert values(rows, "position") == [1, 4]
    assert sorted(matched.values()) == [0, 1, 1]


def test_columns_that_do_not_fit_a_file_stop_the_run(tmp_path, write_parquet, table_input):
    write_parquet(tmp_path / "a.parquet", columns(3))
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.png").write_bytes(b"1")
    shards, loose = shards_of(table_input(tmp_path)), InputSettings(url=str(tmp_path / "loose"))
    for predicate, words in ((("prize", "=", 1), "no column 'prize'"), (("id", "=", "one"), "cannot be compared")):
        with pytest.raises(InputError, match=words):
            sighted(table_input(tmp_path, filter=[predicate]), shards)
    with pytest.raises(InputError, match="loose images have none"):
        sighted(loose.model_copy(update={"filter": (("price", "=", 1),)}), shards_of(loose))


# ---- Columns passed through


def test_columns_pass_through_with_their_types_and_partitions_go_before_them(tmp_path, write_parquet, table_input):
    extra = {
        "price": pa.array([1.5, None, 2.5], pa.float32()),
        "when": pa.array([1234567890123456789, 2, None], pa.timestamp("ns", "UTC")),
        "box": [{"x": 1, "tags": ["a"]}, None, {"x": 2, "tags": []}],
        "day": ["not", "that", "one"],
    }
    write_parquet(tmp_path / "day=2026-11-24" / "a.parquet", {**columns(3), **extra})
    settings = table_input(tmp_path, filter=[("id", "!=", 1)])
    [shard] = shards_of(settings)
    reader = ShardReader(settings, PLAIN, ("price", "when", "box", "day"))
    rows = [row for batch in reader.read(shard) for row in batch]
    fields = {field.name: field.type for field in reader.extra_fields(shard)}
    assert list(fields) == ["price", "when", "box", "day"]
    assert (fields["price"], fields["when"]) == (pa.float32(), pa.timestamp("ns", "UTC"))
    assert fields["day"] == pa.string()
    assert [row.extra["price"].as_py() for row in rows] == [1.5, 2.5]
    assert [row.extra["when"].value for row in rows] == [1234567890123456789, None]
    assert [row.extra["box"].as_py() for row in rows] == [{"x": 1, "tags": ["a"]}, {"x": 2, "tags": []}]
    assert [row.extra["day"].as_py() for row in rows] == ["2026-11-24"] * 2


def test_loose_images_pass_their_partitions_through(tmp_path):
    (tmp_path / "day=1").mkdir()
    for name in ("day=1/a.png", "b.png"):
        (tmp_path / name).write_bytes(b"1")
    settings = InputSettings(url=str(tmp_path))
    reader = ShardReader(settings, PLAIN, ("day",))
    rows = [row for shard in shards_of(settings) for batch in reader.read(shard) for row in batch]
    assert sorted((row.uri, row.extra["day"].as_py()) for row in rows) == [("b.png", None), ("day=1/a.png", "1")]
