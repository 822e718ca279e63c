import numpy as np
import pyarrow as pa
import pytest

from pipeline import layout
from pipeline.examples import examples_schema, fingerprint, load_examples, read_examples
from pipeline.settings import InputSettings, ModelSettings, SplitSettings, TransformSettings
from pipeline.shards import Segment, Shard
from pipeline.splits import split_of
from pipeline.storage import open_storage
from pipeline.tables import write_table

NO_SPLIT = SplitSettings(val=0, test=0)


@pytest.fixture
def store(tmp_path, storage_settings):
    return open_storage(str(tmp_path), storage_settings)


def segment(path, num_rows=4):
    return Segment(path, 10, "v1", 0, num_rows, num_rows)


def write(store, shard, rows):
    """Write a shard's table: rows are dicts; `segment` is by default the shard's first."""
    schema = examples_schema(0)
    defaults = {"uri": "u", "segment": shard.segments[0].key, "position": 0, "group": None, "split": None}
    full = [{**defaults, **row} for row in rows]
    table = pa.table({name: [row[name] for row in full] for name in schema.names}, schema=schema)
    write_table(store, layout.features("d", "x", shard.id), table)
    return shard


def load(store, shards, settings=NO_SPLIT):
    return load_examples(store, "d", "x", shards, settings)


def row(content, label="cat", **more):
    return {"content_hash": content, "label": label, **more}


def test_rows_of_all_shards_in_plan_order_with_their_place_in_the_table(store):
    first = write(store, Shard((segment("a"),)), [row("h1"), row("h2", "dog")])
    second = write(store, Shard((segment("b"),)), [row("h3"), row("h4"), row("h5", None)])
    examples = load(store, [second, first])
    assert examples.labels == ["cat", "cat", None, "cat", "dog"]
    assert examples.shard_numbers.tolist() == [0, 0, 0, 1, 1]
    assert examples.slots.tolist() == [0, 1, 2, 0, 1]
    assert (examples.without_label, examples.leaked) == (1, 0)
    assert examples.unreadable == 8 - 5  # the plan says four images each


def test_labelled_rows_of_a_split_are_its_examples_grouped_by_shard(store):
    splits = ["train", "val", "train", "test"]
    first = write(store, Shard((segment("a"),)), [row(f"a{i}", split=s) for i, s in enumerate(splits)])
    second = write(store, Shard((segment("b", 2),)), [row("b0", split="val"), row("b1", None, split="train")])
    third = write(store, Shard((segment("c", 1),)), [row("c0", split="train")])
    examples = load(store, [first, second, third])
    assert examples.of("train").tolist() == [0, 2, 5]
    assert examples.of("val").tolist() == [1, 3]
    assert examples.of("nothing").tolist() == []
    grouped = [part.tolist() for part in examples.by_shard(examples.of("train"))]
    assert grouped == [[0, 2], [5]]


def test_without_a_split_the_group_else_the_content_decides(store):
    settings = SplitSettings(val=0.3, test=0.3)
    rows = [row(f"h{i}", group=f"g{i % 3}" if i < 30 else None) for i in range(60)]
    shard = write(store, Shard((segment("a", 60),)), rows)
    examples = load(store, [shard], settings)
    expected = [split_of(r.get("group") or r["content_hash"], settings) for r in rows]
    assert set(expected[30:]) == {"train", "val", "test"}
    assert dict(zip(examples.hashes, examples.splits, strict=True)) == {
        f"h{i}": split for i, split in enumerate(expected) if split != "test"
    }


def test_training_rows_that_are_judged_on_as_well_are_dropped_and_counted(store):
    rows = [row("same", split="train"), row("same", split="test"), row("own", split="train"), row("own", split="train")]
    examples = load(store, [write(store, Shard((segment("a"),)), rows)])
    assert examples.splits == ["train", "train"]
    assert examples.leaked == 1
    assert examples.slots[examples.of("train")].tolist() == [2, 3]


def test_no_image_that_is_judged_on_is_an_example(store):
    rows = [row(f"h{i}", f"c{i}", split=s) for i, s in enumerate(("train", "test", "val", "holdout", "test"))]
    examples = load(store, [write(store, Shard((segment("a", 5),)), rows)])
    assert (examples.hashes, examples.labels, examples.splits) == (["h0", "h2"], ["c0", "c2"], ["train", "val"])
    assert examples.slots.tolist() == [0, 2]
    assert examples.of("test").tolist() == []
    # Only how many images have which label is known of the others.
    assert examples.label_counts["test"] == {"c1": 1, "c4": 1}


def test_rows_of_tombstoned_segments_are_gone_and_slots_count_the_rest(store):
    old, new = segment("old", 2), segment("new", 2)
    whole = Shard((old, new))
    rows = [row("h0", segment=old.key), row("h1", "dog", segment=new.key), row("h2", "dog", segment=new.key)]
    write(store, whole, rows)
    alive = Shard((old, new), frozenset({old.key}))
    assert alive.id == whole.id
    examples = load(store, [alive])
    assert (examples.labels, examples.slots.tolist()) == (["dog", "dog"], [0, 1])
    assert examples.unreadable == 0
    table = read_examples(store, "d", "x", alive, ("segment", "content_hash"))
    assert table["content_hash"].to_pylist() == ["h1", "h2"]


def test_no_shards_are_no_examples(store):
    examples = load(store, [])
    assert examples.labels == []
    assert examples.slots.dtype.kind == "i"
    assert examples.by_shard(np.empty(0, np.int64)) == []


SOURCE = InputSettings(url="/images", image_column="image", label_column="label")
MODEL = ModelSettings(builder="mobilenet_v2", weights="/w.safetensors")


def name(source=None, model=None, weights="sha", libraries="torchvision 1"):
    changed_source = SOURCE.model_copy(update=source or {})
    return fingerprint(changed_source, MODEL.model_copy(update=model or {}), weights, libraries)


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"image_column": "thumbnail"}},
        {"source": {"image_column": None, "uri_column": "url"}},
        {"source": {"allowed_prefixes": ("s3://b/",)}},
        {"source": {"label_column": "species"}},
        {"source": {"split_column": "fold"}},
        {"source": {"group_column": "patient"}},
        {"source": {"max_pixels": 1000}},
        {"model": {"builder": "resnet18"}},
        {"model": {"arguments": {"width_mult": 0.5}}},
        {"model": {"transforms": TransformSettings(crop_px=200)}},
        {"weights": "other"},
        {"weights": None},
        {"libraries": "torchvision 2"},
    ],
    ids=str,
)
def test_whatever_decides_what_a_table_holds_is_in_its_name(change):
    assert name(**change) != name()


@pytest.mark.parametrize(
    "change",
    [
        {"source": {"url": "/elsewhere"}},
        {"source": {"id_column": "key"}},
        {"source": {"shard_images": 7}},
        {"model": {"name": "other"}},
        {"model": {"weights": "/same/bytes.safetensors"}},
    ],
    ids=str,
)
def test_what_decides_nothing_shares_the_tables(change):
    assert name(**change) == name()


def test_without_a_backbone_the_model_does_not_matter():
    assert name(weights=None) == name(weights=None, model={"builder": "linear"}, libraries="torchvision 2")
