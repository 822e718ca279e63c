from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline import loading, zoo
from pipeline.engine import normalize
from pipeline.errors import IntegrityError
from pipeline.examples import Examples, load_examples
from pipeline.loading import Inputs, Pictures, ShardCache, encoded_reader, feature_reader, pixel_reader
from pipeline.shards import Segment, Shard
from pipeline.storage import open_storage
from pipeline.transforms import Transforms

SHARDS = tuple(Shard((Segment(name, 1, "v", 0, 3, 3),)) for name in "abc")


def counted(calls):
    """A reader whose shard `n` holds the rows 10 n, 10 n + 1, 10 n + 2 (24 bytes), and notes each call."""

    def read(shard):
        number = SHARDS.index(shard)
        calls[number] += 1
        return np.arange(3, dtype=np.int64) + 10 * number

    return read


def inputs(calls, budget_bytes):
    numbers, slots = np.repeat(np.arange(3), 3), np.tile(np.arange(3), 3)
    examples = Examples(SHARDS, numbers, slots, [""] * 9, ["x"] * 9, ["train"] * 9, 0, 0, 0)
    return Inputs(examples, np.arange(9) * 100, ShardCache(SHARDS, counted(calls), budget_bytes))


def test_examples_come_in_the_order_asked_for_with_their_targets():
    values, targets = inputs(Counter(), 1000).gather(np.array([8, 0, 4, 4, 3]))
    assert values.tolist() == [22, 0, 11, 11, 10]
    assert targets.tolist() == [800, 0, 400, 400, 300]


def test_within_the_budget_every_shard_is_read_once():
    calls = Counter()
    loaded = inputs(calls, 72)
    for _ in range(3):
        loaded.gather(np.arange(9))
    assert calls == {0: 1, 1: 1, 2: 1}


def test_over_the_budget_the_shard_used_longest_ago_is_dropped():
    calls = Counter()
    loaded = inputs(calls, 48)  # room for two
    for example in (0, 3, 0, 6):  # the last one drops shard 1
        loaded.gather(np.array([example]))
    assert calls == {0: 1, 1: 1, 2: 1}
    loaded.gather(np.array([0]))
    assert calls[0] == 1
    loaded.gather(np.array([3]))
    assert calls[1] == 2


def test_one_shard_is_kept_however_small_the_budget():
    calls = Counter()
    loaded = inputs(calls, 1)
    for _ in range(4):
        loaded.gather(np.array([2, 1]))
    assert calls == {0: 1}
    assert loaded.gather(np.arange(9))[0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]


SMALL = {"resize_px": 6, "crop_px": 5}


@pytest.fixture
def task(tmp_path, class_folders, training_task):
    """A training on pixels; one of its images cannot be read."""
    root = class_folders(tmp_path / "images", {"train": 5, "val": 2})
    (root / "train/cat/broken.png").write_bytes(b"no image")
    return training_task(
        root, tmp_path / "store", {"mode": "scratch"}, {"builder": "linear", "transforms": SMALL}, shard_images=6
    )


def examples_of(task):
    store = open_storage(task.store, task.storage)
    return load_examples(store, task.dataset, task.examples, task.shards, task.split)


def all_inputs(task, read):
    """Return the inputs of all examples, shard by shard, and the examples."""
    examples = examples_of(task)
    loaded = Inputs(examples, np.zeros(len(examples.labels), np.int64), ShardCache(task.shards, read, 10**6))
    return loaded.gather(np.arange(len(examples.labels)))[0].numpy(), examples


def test_pixels_are_those_of_the_readable_images(task):
    store, transforms = open_storage(task.store, task.storage), Transforms(6, 5)
    pixels, examples = all_inputs(task, pixel_reader(store, task, examples_of(task), transforms, threads=2))
    assert len(task.shards) > 2
    assert (len(pixels), examples.unreadable) == (21, 1)
    files = [s.path for shard in task.shards for s in shard.segments if "broken" not in s.path]
    images = open_storage(task.input.url, task.storage)
    assert len(files) == len(pixels)
    for path, array in zip(files, pixels, strict=True):
        assert np.array_equal(array, transforms.pixels(Image.open(f"{images.url}/{path}").convert("RGB")))


def test_tombstoned_segments_are_left_out_of_tables_and_pixels_alike(task):
    first = task.shards[0]
    shards = (Shard(first.segments, frozenset({first.segments[1].key})), *task.shards[1:])
    assert shards[0].id == first.id
    shorter = replace(task, shards=shards)
    store = open_storage(task.store, task.storage)
    whole, _ = all_inputs(task, pixel_reader(store, task, examples_of(task), Transforms(6, 5), 1))
    rest, examples = all_inputs(shorter, pixel_reader(store, shorter, examples_of(shorter), Transforms(6, 5), 1))
    readable = [s.path for s in first.segments if "broken" not in s.path]
    gone = readable.index(first.segments[1].path)
    assert len(examples.labels) == 20
    assert np.array_equal(rest, np.delete(whole, gone, axis=0))


def test_encoded_pictures_are_those_of_the_examples(task):
    store = open_storage(task.store, task.storage)
    read, images = encoded_reader(store, task, examples_of(task)), open_storage(task.input.url, task.storage)
    for shard in task.shards:
        paths = [segment.path for segment in shard.segments if "broken" not in segment.path]
        held = read(shard)
        assert [held[slot] for slot in range(len(paths))] == [images.read(path) for path in paths]
        assert held.nbytes == sum(len(images.read(path)) for path in paths)


def test_encoded_pictures_that_are_gone_are_noticed(task):
    store, first = open_storage(task.store, task.storage), task.shards[0]
    fewer = Shard(tuple(s for s in first.segments if "broken" not in s.path)[1:])
    store.write(
        f"features/images/examples/{fewer.id}.parquet", store.read(f"features/images/examples/{first.id}.parquet")
    )
    with pytest.raises(IntegrityError, match=r"images decode, its examples are \d; plan and train again"):
        encoded_reader(store, task, replace(examples_of(task), shards=(fewer, *task.shards[1:])))(fewer)


def test_pictures_are_changed_by_the_epoch_and_their_place_in_it(task):
    store = open_storage(task.store, task.storage)
    examples = load_examples(store, task.dataset, task.examples, task.shards, task.split)
    asked = []

    def augment(data, epoch, position):
        asked.append((epoch, position))
        return np.full((2, 2, 3), len(data) % 256, np.uint8)

    pictures = Pictures(ShardCache(task.shards, encoded_reader(store, task, examples_of(task)), 10**6), augment, 2)
    loaded = Inputs(examples, np.arange(len(examples.labels)), ShardCache(task.shards, len, 1), pictures)
    inputs, targets = loaded.begin(np.array([5, 0, 5]), np.array([17, 3, 4]), 2)()
    assert sorted(asked) == [(2, 3), (2, 4), (2, 17)]
    assert (inputs.shape, targets.tolist()) == ((3, 2, 2, 3), [5, 0, 5])
    assert torch.equal(inputs[0], inputs[2])


def test_features_are_those_of_the_table(tmp_path, task, training_task):
    torch.manual_seed(0)
    save_file(zoo.build("linear", {"size_px": 5, "in_channels": 3}, 2).state_dict(), tmp_path / "w.safetensors")
    model = {"builder": "linear", "weights": str(tmp_path / "w.safetensors"), "transforms": SMALL}
    cached = training_task(tmp_path / "images", tmp_path / "store", {"mode": "head"}, model, shard_images=6)
    store = open_storage(task.store, task.storage)
    features, examples = all_inputs(cached, feature_reader(store, cached, examples_of(cached)))
    pixels, _ = all_inputs(task, pixel_reader(store, task, examples_of(task), Transforms(6, 5), 1))
    expected = normalize(torch.from_numpy(pixels), Transforms(6, 5, mean=(0.5,) * 3, std=(0.5,) * 3)).flatten(1)
    assert (features.dtype, features.shape) == (np.float32, (len(examples.labels), 75))
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_images_that_stopped_decoding_since_are_noticed(task):
    """A row of the table without its pixels would shift all that follow."""
    store = open_storage(task.store, task.storage)
    read = pixel_reader(
        store,
        replace(task, input=task.input.model_copy(update={"max_pixels": 1})),
        examples_of(task),
        Transforms(6, 5),
        1,
    )
    with pytest.raises(IntegrityError, match="0 images decode, its examples are"):
        read(task.shards[-1])


@pytest.mark.parametrize("kind", ["pixels", "encoded", "features"])
def test_test_images_are_never_read_for_training(tmp_path, class_folders, training_task, kind, monkeypatch):
    """Shards hold images of all splits; of those that are judged on not a byte is decoded, and nothing is kept."""
    root = class_folders(tmp_path / "images", {"train": 4, "val": 2, "test": 3})
    torch.manual_seed(0)
    save_file(zoo.build("linear", {"size_px": 5, "in_channels": 3}, 2).state_dict(), tmp_path / "w.safetensors")
    head = {"builder": "linear", "weights": str(tmp_path / "w.safetensors"), "transforms": SMALL}
    train = {"mode": "head"} if kind == "features" else {"mode": "scratch"}
    model = head if kind == "features" else {"builder": "linear", "transforms": SMALL}
    task = training_task(root, tmp_path / "store", train, model, shard_images=100)
    assert len(task.shards) == 1
    store, examples = open_storage(task.store, task.storage), examples_of(task)
    if kind == "pixels":
        seen, real = [], loading.decoder
        monkeypatch.setattr(loading, "decoder", lambda *a: lambda row: seen.append(row.uri) or real(*a)(row))
        held = pixel_reader(store, task, examples, Transforms(6, 5), 1)(task.shards[0])
        assert not [uri for uri in seen if uri.startswith("test/")]
    elif kind == "encoded":
        held = encoded_reader(store, task, examples)(task.shards[0]).rows
    else:
        held = feature_reader(store, task, examples)(task.shards[0])
    assert len(held) == len(examples.labels) == 3 * (4 + 2)
