from datetime import date

import pytest

from pipeline.selection import row_settings, selected
from pipeline.settings import InputSettings
from pipeline.shards import Segment, Shard, make_shards

PATHS = ["day=2026-11-23/n=9/a", "day=2026-11-24/n=9/b", "day=2026-11-24/n=10/c", "day=__HIVE_DEFAULT_PARTITION__/n=x/d", "e"]  # fmt: skip


def shards_of(paths) -> list[Shard]:
    return list(make_shards((Segment(path, 1, "v", 0, 5, 5) for path in paths), 100))


def chosen(*predicates) -> str:
    shards = selected(shards_of(PATHS), InputSettings(url="x", filter=predicates))
    return "".join(segment.path[-1] for shard in shards for segment in shard.segments)


@pytest.mark.parametrize(
    ("predicates", "names"),
    [
        ((), "abcde"),
        ((("day", "=", "2026-11-24"),), "bc"),
        ((("day", "==", date(2026, 11, 24)),), "bc"),
        ((("day", "<", "2026-11-24"),), "a"),
        ((("day", "!=", "2026-11-24"),), "a"),  # null does not match, nor does a file outside of all partitions
        ((("day", "in", ("2026-11-23", "2026-11-25")),), "a"),
        ((("day", "not in", ("2026-11-23",)),), "bc"),
        ((("n", ">", 9),), "c"),  # as numbers: as text, 10 stands before 9
        ((("n", "=", "9"),), "ab"),
        ((("day", ">=", "2026"), ("n", "=", 9)), "ab"),
        ((("day", "=", "1999-01-01"),), ""),
        ((("price", ">", 3),), "abcde"),  # of rows, not of files
    ],
)
def test_predicates_on_partitions_choose_shards(predicates, names):
    assert chosen(*predicates) == names


def test_a_vanished_segment_chooses_nothing():
    [shard] = shards_of(["day=1/a"])
    other = Shard((Segment("day=2/b", 1, "v", 0, 5, 5),))
    both = [Shard(shard.segments, frozenset({shard.segments[0].key})), other]
    assert selected(both, InputSettings(url="x", filter=[("day", "in", ("1", "2"))])) == [other]


def test_predicates_on_partitions_are_no_business_of_rows():
    settings = InputSettings(url="x", filter=[("day", "=", "2026-11-24"), ("price", ">", 3)])
    assert row_settings(settings, PATHS).filter == (("price", ">", 3),)
    assert row_settings(settings, ["a.parquet"]) == settings
    assert row_settings(InputSettings(url="x"), PATHS) == InputSettings(url="x")
