import pytest

from pipeline.partitions import partition_folders, partition_names, partitions_of


@pytest.mark.parametrize(
    ("path", "columns"),
    [
        ("x.parquet", {}),
        ("date=2026-11-24/country=de/x.parquet", {"date": "2026-11-24", "country": "de"}),
        ("raw/date=2026-11-24/deep/x.jpg", {"date": "2026-11-24"}),
        ("a=1=2/x.parquet", {"a": "1=2"}),
        ("city=New%20York%2FNY/x.parquet", {"city": "New York/NY"}),
        ("na%20me=1/x.parquet", {"na me": "1"}),
        ("a=__HIVE_DEFAULT_PARTITION__/x.parquet", {"a": None}),
        ("a=/x.parquet", {"a": ""}),
        ("=1/x.parquet", {}),
        ("a/b=2.parquet", {}),  # a file's name is no folder
    ],
)
def test_folders_spell_columns(path, columns):
    assert partitions_of(path) == columns


def test_paths_of_one_partition_have_the_same_folders():
    assert partition_folders("in/a=1/more/b=2/x.parquet") == partition_folders("a=1/b=2/y.parquet") == ("a=1", "b=2")
    assert partition_folders("a=2/b=2/y.parquet") != ("a=1", "b=2")


def test_names_are_those_of_all_files():
    assert partition_names(["a=1/x", "a=2/x", "b%2F=1/c=2/x", "x"]) == {"a", "b/", "c"}
    assert partition_names([]) == frozenset()
