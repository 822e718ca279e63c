import random
from itertools import pairwise

import pytest

from pipeline.shards import (
    Segment,
    Shard,
    make_shards,
    shards_from_table,
    shards_to_table,
    unplanned_rows,
    update_shards,
)


def segment(path: str = "a.parquet", first: int = 0, rows: int = 10, version: str = "v1", total: int = 100) -> Segment:
    return Segment(path, 1000, version, first, rows, total)


def files(*shards: Shard) -> set[tuple[str, int, str]]:
    return {segment.file for shard in shards for segment in shard.segments}


def rows_of(shards: list[Shard]) -> list[tuple[str, str, int]]:
    return [
        (s.path, s.version, row) for shard in shards for s in shard.live for row in range(s.first_row, s.first_row + s.num_rows)
    ]  # fmt: skip


def test_a_segment_is_a_row_range_of_one_file_version():
    assert segment().key == "a.parquet@v1-3e8#0"
    assert segment().file == ("a.parquet", 1000, "v1")
    assert len({segment().key, segment(first=10).key, segment(version="v2").key, segment(path="b").key}) == 4


def test_the_id_is_a_digest_of_the_segments():
    """Pinned: labels lie under this name in every store that exists."""
    shard = Shard((segment(), segment(first=10)))
    assert shard.id == "dcbb136edee1438f"
    others = [
        Shard((segment(first=10), segment())),
        Shard((segment(),)),
        Shard((segment(), segment(first=10, version="v2"))),
        Shard((segment(), segment(first=10, rows=9))),
    ]
    assert len({shard.id, *(other.id for other in others)}) == 5
    assert Shard(shard.segments, frozenset({segment().key})).id == shard.id  # a tombstone moves nothing


def test_live_segments_are_those_without_a_tombstone():
    shard = Shard((segment(), segment(first=10, rows=5)), frozenset({segment().key}))
    assert shard.live == (segment(first=10, rows=5),)
    assert shard.num_images == 5


@pytest.mark.parametrize(
    ("sizes", "limit", "packed"),
    [
        ([], 10, []),
        ([10], 10, [[10]]),
        ([4, 4, 4], 10, [[4, 4], [4]]),
        ([5, 5, 1], 10, [[5, 5], [1]]),
        ([25, 1], 10, [[25], [1]]),
        ([1, 25, 1], 10, [[1], [25], [1]]),
        ([1] * 7, 3, [[1, 1, 1], [1, 1, 1], [1]]),
        ([3, 3], 1, [[3], [3]]),
    ],
)
def test_segments_are_packed_in_order_up_to_the_limit(sizes, limit, packed):
    shards = list(make_shards((segment(path=str(i), rows=rows) for i, rows in enumerate(sizes)), limit))
    assert [[s.num_rows for s in shard.segments] for shard in shards] == packed
    assert [s.path for shard in shards for s in shard.segments] == [str(i) for i in range(len(sizes))]


def test_untouched_shards_stay_and_vanished_segments_get_a_tombstone():
    both = Shard((segment("a"), segment("b")))
    alone = Shard((segment("c"),))
    kept = update_shards([both, alone], {segment("b").file, segment("c").file})
    assert [shard.id for shard in kept] == [both.id, alone.id]
    assert kept[0].live == (segment("b"),)
    assert kept[1] == alone
    assert update_shards([both, alone], files(both, alone)) == [both, alone]


def test_shards_with_nothing_left_are_dropped():
    assert update_shards([Shard((segment("a"),))], set()) == []


def test_a_changed_file_is_another_file():
    shard = Shard((segment("a", version="v1"), segment("b")))
    [kept] = update_shards([shard], {segment("a", version="v2").file, segment("b").file})
    assert kept.live == (segment("b"),)


def test_a_tombstone_is_never_lifted():
    shard = Shard((segment("a"), segment("b")), frozenset({segment("a").key}))
    [kept] = update_shards([shard], files(shard))
    assert kept.live == (segment("b"),)


def test_of_two_shards_that_share_a_segment_the_first_stays():
    """Two planners with different listings, both killed halfway, packed the file b with different neighbours."""
    first, second, third = (
        Shard((segment("a"), segment("b"))),
        Shard((segment("b"), segment("c"))),
        Shard((segment("c"), segment("d"))),
    )
    kept = update_shards([first, second, third], files(first, second, third))
    assert kept == [first, third]  # c fell out with the second, so the third may have it
    assert len(rows_of(kept)) == len(set(rows_of(kept))) == 40


def test_rows_overlap_also_when_the_segments_were_cut_differently():
    """The same file, planned with two values of input.shard_images."""
    coarse = Shard((segment(first=0, rows=20), segment(first=20, rows=20)))
    fine = [Shard((segment(first=first, rows=10),)) for first in range(0, 60, 10)]
    assert update_shards([coarse, *fine], files(coarse)) == [coarse, *fine[4:]]
    assert update_shards([fine[1], coarse], files(coarse)) == [fine[1]]


@pytest.mark.parametrize(
    ("held", "cut", "left"),
    [
        ([], [(0, 10)], [(0, 10)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(0, 30)], [(10, 20)]),
        ([(10, 10)], [(0, 30)], [(0, 10), (20, 10)]),
        ([(20, 10)], [(0, 30)], [(0, 20)]),
        ([(0, 30)], [(0, 10), (10, 10), (20, 10)], []),
        ([(10, 5), (20, 5)], [(0, 12), (12, 18)], [(0, 10), (15, 5), (25, 5)]),
    ],
)
def test_the_rows_that_no_shard_holds_are_left_however_the_file_was_cut(held, cut, left):
    shards = [Shard((segment(first=first, rows=rows),)) for first, rows in held]
    found = unplanned_rows((segment(first=first, rows=rows) for first, rows in cut), shards)
    assert [(s.first_row, s.num_rows) for s in found] == left


def test_rows_of_another_version_are_no_rows_of_this_one():
    old, new = segment(version="v1"), segment(version="v2")
    assert list(unplanned_rows([new], [Shard((old,))])) == [new]


def test_a_segment_that_is_tombstoned_here_may_live_elsewhere():
    old = Shard((segment("a"), segment("b")), frozenset({segment("a").key}))
    new = Shard((segment("a"),))
    assert update_shards([old, new], files(old)) == [old, new]


@pytest.mark.parametrize("seed", range(5))
def test_no_row_lies_in_two_shards_whatever_the_history(seed):
    chance = random.Random(seed)
    history = []
    for _ in range(60):
        cuts = sorted(chance.sample(range(0, 101, 5), 3))
        path = chance.choice("abc")
        history.append(Shard(tuple(segment(path, a, b - a) for a, b in pairwise(cuts))))
    kept = update_shards(history, files(*history))
    rows = rows_of(kept)
    assert len(rows) == len(set(rows))
    assert kept[0] == history[0]
    for shard in history:  # what was dropped collides with what was kept: nothing is dropped in vain
        assert shard in kept or set(rows_of([shard])) & set(rows)


def test_shards_read_back_from_a_table():
    shards = [
        Shard((segment("ü a#1"), segment("b")), frozenset({segment("b").key})),
        Shard((segment("c", first=7, rows=3, version='"e-1"'),)),
    ]
    assert shards_from_table(shards_to_table(shards)) == shards
    assert shards_from_table(shards_to_table([])) == []
    assert shards_to_table([]).schema.equals(shards_to_table(shards).schema, check_metadata=True)
