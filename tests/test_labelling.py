import hashlib
import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline import batches
from pipeline.errors import ImageError, IntegrityError, ModelError, SourceChangedError, TransientError
from pipeline.labelling import Labeller, Predictor, answer, label_shard
from pipeline.ledger import read_ledger
from pipeline.rows import ShardReader
from pipeline.tables import read_table

COLUMNS = [
    "image_id", "uri", "label", "class_index", "confidence", "top_k", "width", "height", "model", "content_hash",
    "segment",
]  # fmt: skip
QUARANTINE = ["image_id", "uri", "stage", "reason", "error_type", "message", "content_hash", "segment"]


def huge_png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oddities() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Images that look strange and are good, with their upright sizes."""
    grey = Image.fromarray(np.arange(96, dtype=np.uint8).reshape(8, 12))
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its side
    palette = grey.convert("P")
    return {
        "cmyk.jpg": (saved(grey.convert("CMYK"), "JPEG"), (12, 8)),
        "16-bit.png": (saved(Image.fromarray(np.full((8, 12), 40_000, np.uint16)), "PNG"), (12, 8)),
        "palette.png": (saved(palette, "PNG", transparency=3), (12, 8)),
        "animated.gif": (saved(grey, "GIF", save_all=True, append_images=[grey.rotate(180)]), (12, 8)),
        "rotated.jpg": (saved(grey, "JPEG", exif=turned), (8, 12)),
        "grey-alpha.png": (saved(grey.convert("LA"), "PNG"), (12, 8)),
    }


def refused(png) -> dict[str, tuple[bytes | None, tuple[str, str, str]]]:
    """Images that cannot be labelled, with stage, reason and error type."""
    whole = png(1, (64, 64), "RGB", "JPEG")
    return {
        "truncated.jpg": (whole[: len(whole) // 2], ("decode", "truncated", "OSError")),
        "empty.png": (b"", ("decode", "empty", "ImageError")),
        "html.jpg": (b"<html>404 Not Found</html>", ("decode", "not_an_image", "UnidentifiedImageError")),
        "huge.png": (huge_png(), ("decode", "too_large", "ImageError")),
        "null": (None, ("read", "null", "ImageError")),
    }


class Recording:
    """A storage that notes what is written, in order, and may refuse some of it once."""

    def __init__(self, storage, refuse: str = "nothing") -> None:
        self._storage, self._refuse, self.url, self.written = storage, refuse, storage.url, []

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def write(self, path: str, data: bytes) -> None:
        if path.startswith(self._refuse):
            raise TransientError(f"{path}: 503")
        self.written.append(path)
        self._storage.write(path, data)


class Prepared:
    """One planned data set with a model: everything that `label_shard` takes."""

    def __init__(self, night, config, builder: str = "linear") -> None:
        self.night, self.version = night, night.seal(builder)
        self.task, self.plan = night.task(config, self.version), night.plan(config)
        self.reader = ShardReader(config.input, config.storage)
        self.predictor: Predictor = Labeller(self.task).predictor(self.plan.shards[0])

    def label(self, store=None, reader=None):
        return [
            label_shard(shard, self.task, store or self.night.store, reader or self.reader, self.predictor)
            for shard in self.plan.shards
        ]

    def tables(self, entry) -> tuple[pa.Table, pa.Table | None]:
        store = self.night.store
        return read_table(store, entry.labels.path), entry.quarantine and read_table(store, entry.quarantine.path)

    def committed(self) -> dict:
        return read_ledger(self.night.store, self.task.generation, self.plan.shards)


@pytest.fixture
def prepared(night):
    """Thirty good images and two bad ones in one shard."""
    night.write("a.parquet", list(range(30)))
    night.write("b.parquet", [30, 31], image=pa.array([b"", None], pa.binary()))
    return Prepared(night, night.config())


def test_every_odd_input_of_one_shard_lands_where_it_should(night, png):
    good, bad = oddities(), refused(png)
    ids = [*good, *bad, None]
    images = [data for data, _ in [*good.values(), *bad.values()]] + [png()]
    night.write("odd.parquet", ids, 100, image=pa.array(images, pa.binary()))
    prepared = Prepared(night, night.config())
    (entry,) = prepared.label()
    labels, quarantine = prepared.tables(entry)

    assert {r["image_id"]: (r["width"], r["height"]) for r in labels.to_pylist()} == {
        k: s for k, (_, s) in good.items()
    }
    rows = {r["image_id"]: r for r in quarantine.to_pylist()}
    found = {key: (r["stage"], r["reason"], r["error_type"]) for key, r in rows.items()}
    assert found == {key: told for key, (_, told) in bad.items()} | {None: ("read", "null_id", "ImageError")}
    assert all(r["message"] for r in rows.values())
    assert "30000 x 30000" in rows["huge.png"]["message"]
    assert "<html>404" in rows["html.jpg"]["message"]
    assert rows["truncated.jpg"]["content_hash"] == hashlib.sha256(bad["truncated.jpg"][0]).hexdigest()
    assert rows["null"]["content_hash"] is None
    assert rows[None]["uri"] == f"odd.parquet#{len(ids) - 1}"

    assert labels.num_rows + quarantine.num_rows == len(ids)
    assert entry.counts.images_in == len(ids) == entry.counts.labelled + entry.counts.quarantined
    assert sum(entry.reasons.values()) == entry.quarantine.rows == quarantine.num_rows
    assert sum(entry.classes.values()) == sum(entry.confidences) == entry.labels.rows == labels.num_rows


def test_files_have_the_documented_columns_and_say_their_schema(prepared):
    (entry,) = prepared.label()
    labels, quarantine = prepared.tables(entry)
    assert labels.column_names == COLUMNS
    assert quarantine.column_names == QUARANTINE
    assert labels.schema.metadata[b"nightshift.schema"] == b"predictions/1"
    assert quarantine.schema.metadata[b"nightshift.schema"] == b"quarantine/1"
    assert labels.schema.field("top_k").type == pa.list_(
        pa.struct([("label", pa.string()), ("class_index", pa.int32()), ("probability", pa.float32())])
    )


def test_prediction_row_says_what_the_model_answered(prepared):
    (entry,) = prepared.label()
    row = prepared.tables(entry)[0].to_pylist()[11]
    data = pq.read_table(prepared.night.data / "a.parquet")["image"][11].as_py()
    logits = prepared.predictor.engine(np.array(Image.open(io.BytesIO(data)))[None, :, :, None])[0]
    assert row["content_hash"] == hashlib.sha256(data).hexdigest()
    assert row["class_index"] == int(logits.argmax())
    assert row["label"] == ("ant", "bee", "cat")[row["class_index"]]
    assert [best["class_index"] for best in row["top_k"]] == np.argsort(-logits).tolist()
    assert row["confidence"] == row["top_k"][0]["probability"]
    assert sum(best["probability"] for best in row["top_k"]) == pytest.approx(1, abs=1e-6)
    assert (row["image_id"], row["uri"], row["model"]) == (11, "a.parquet#11", f"tiny@{prepared.version}")
    assert row["segment"] in entry.segments


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (pa.array([5, 7], pa.int64()), pa.int64()),
        (pa.array([5, 7], pa.uint8()), pa.uint8()),
        (pa.array(["a", "007"], pa.string()), pa.string()),
        (pa.array(["a", "007"], pa.large_string()), pa.large_string()),
        (pa.array(["a", "007"], pa.string()).dictionary_encode(), pa.string()),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_ids_keep_their_type(night, ids, kept):
    night.write("a.parquet", ids, image=pa.array([night.png(), b"bad"], pa.binary()), label=["ant", "ant"])
    prepared = Prepared(night, night.config())
    labels, quarantine = prepared.tables(prepared.label()[0])
    for table, position in ((labels, 0), (quarantine, 1)):
        assert table.schema.field("image_id").type == kept
        assert table["image_id"].to_pylist() == [ids.to_pylist()[position]]


def test_without_an_id_column_the_place_is_the_id(night):
    night.write("a.parquet", [0, 1])
    prepared = Prepared(night, night.config(input={"id_column": None}))
    assert prepared.tables(prepared.label()[0])[0]["image_id"].to_pylist() == ["a.parquet#0", "a.parquet#1"]


def test_labels_are_written_first_and_the_ledger_last(prepared):
    store = Recording(prepared.night.store)
    (entry,) = prepared.label(store)
    asked = prepared.task.generation
    assert store.written == [
        asked.labels(entry.shard_id, "night-1"),
        asked.quarantine(entry.shard_id, "night-1"),
        asked.ledger(entry.shard_id),
    ]


def test_clean_shard_writes_no_quarantine(night):
    night.write("a.parquet", [0, 1, 2])
    prepared = Prepared(night, night.config())
    store = Recording(night.store)
    (entry,) = prepared.label(store)
    assert entry.quarantine is None
    assert [path.split("/")[0] for path in store.written] == ["labels", "ledger"]


def test_shard_without_a_good_image_is_committed_all_the_same(night):
    night.write("a.parquet", [1, 2], image=pa.array([b"", b"x"], pa.binary()))
    prepared = Prepared(night, night.config())
    (entry,) = prepared.label()
    labels, quarantine = prepared.tables(entry)
    assert (labels.num_rows, quarantine.num_rows) == (0, 2)
    assert labels.column_names == COLUMNS
    assert sum(entry.confidences) == 0


@pytest.mark.parametrize("refuse", ["labels/", "quarantine/", "ledger/"])
def test_failure_between_the_writes_commits_nothing_and_a_rerun_gives_equal_rows(prepared, refuse):
    with pytest.raises(TransientError):
        prepared.label(Recording(prepared.night.store, refuse))
    assert prepared.committed() == {}
    (again,) = prepared.label()
    first = [table.to_pylist() for table in prepared.tables(again)]
    (third,) = prepared.label()
    assert [table.to_pylist() for table in prepared.tables(third)] == first
    assert prepared.committed()[again.shard_id].labels == third.labels


def test_batch_size_changes_no_label_and_probabilities_by_less_than_a_millionth(night):
    flat = [saved(Image.new("L", (8, 8), 7 * n), "PNG") for n in range(35)]  # noise alone is all one class to it
    images = [*flat, *(night.png(n) for n in range(35))]
    night.write("a.parquet", list(range(70)), image=pa.array(images, pa.binary()))
    tables = []
    for batch_size in (1, 7, 64):
        prepared = Prepared(night, night.config(label={"batch_size": batch_size, "exact": True}), "lab_cnn")
        tables.append(prepared.tables(prepared.label()[0])[0])
    for other in tables[1:]:
        exact = [name for name in COLUMNS if name not in ("confidence", "top_k")]
        assert other.select(exact).equals(tables[0].select(exact))
        difference = np.subtract(*(probabilities(table) for table in (tables[0], other)))
        assert np.abs(difference).max() < 1e-6
    assert len(set(tables[0]["label"].to_pylist())) > 1


def probabilities(table: pa.Table) -> np.ndarray:
    ordered = [sorted((best["class_index"], best["probability"]) for best in top) for top in table["top_k"].to_pylist()]
    return np.array([[probability for _, probability in row] for row in ordered])


def test_transient_error_of_reading_fails_the_attempt_not_the_row(prepared):
    class Flaky(ShardReader):
        def read(self, shard, batch_size=64):
            rows = super().read(shard, 8)
            yield next(rows)
            raise TransientError("throttled")

    settings = prepared.task.input, prepared.task.storage
    store = Recording(prepared.night.store)
    with pytest.raises(TransientError, match="throttled"):
        prepared.label(store, Flaky(*settings))
    assert store.written == []


def test_memory_error_fails_the_attempt_not_the_row(prepared, monkeypatch):
    def starved(*_):
        raise MemoryError

    monkeypatch.setattr(batches, "finish", starved)
    store = Recording(prepared.night.store)
    with pytest.raises(MemoryError):
        prepared.label(store)
    assert store.written == []


def test_file_that_changed_since_the_plan_fails_the_attempt(prepared):
    prepared.night.write("a.parquet", list(range(12)))
    with pytest.raises(SourceChangedError, match=r"a\.parquet"):
        prepared.label()
    assert prepared.committed() == {}


def test_lost_row_is_an_integrity_error_and_nothing_is_written(prepared):
    class Losing(ShardReader):
        def read(self, shard, batch_size=64):
            for rows in super().read(shard, batch_size):
                yield rows[1:]

    store = Recording(prepared.night.store)
    with pytest.raises(IntegrityError, match=r"30 images in, but 29 labelled \+ 0 quarantined"):
        prepared.label(store, Losing(prepared.task.input, prepared.task.storage))
    assert store.written == []


def test_tombstoned_segments_are_not_labelled(night):
    config = night.config()
    night.write("a.parquet", [1, 2])
    night.write("b.parquet", [3, 4])
    night.plan(config)
    (night.data / "a.parquet").unlink()
    prepared = Prepared(night, config)
    (entry,) = prepared.label()
    assert prepared.tables(entry)[0]["image_id"].to_pylist() == [3, 4]
    assert entry.counts.images_in == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_model_that_answers_no_numbers_is_refused_by_name(night, value):
    def damage(net: torch.nn.Module) -> None:
        with torch.no_grad():
            net.fc.bias[1] = value

    night.write("a.parquet", list(range(4)))
    version = night.seal(change=damage)
    task, plan = night.task(night.config(), version), night.plan(night.config())
    with pytest.raises(ModelError, match=rf"bundle tiny@{version} answers a.parquet#0 .*[Tt]rain again"):
        Labeller(task)(plan.shards[0])
    assert read_ledger(night.store, task.generation, plan.shards) == {}


def test_answer_for_one_image_equals_its_row_of_the_batch_job(prepared):
    (entry,) = prepared.label()
    row = prepared.tables(entry)[0].to_pylist()[3]
    data = pq.read_table(prepared.night.data / "a.parquet")["image"][3].as_py()
    alone = answer(prepared.predictor, "photo.png", data, 10_000)
    assert (alone["image_id"], alone["uri"]) == ("photo.png", "photo.png")
    same = ("label", "class_index", "width", "height", "model", "content_hash")
    assert [alone[key] for key in same] == [row[key] for key in same]
    assert [b["label"] for b in alone["top_k"]] == [b["label"] for b in row["top_k"]]
    assert alone["confidence"] == pytest.approx(row["confidence"], abs=1e-6)


def test_answer_for_a_bad_image_raises_what_is_wrong_with_it(prepared):
    with pytest.raises(ImageError, match="empty"):
        answer(prepared.predictor, "photo.png", b"", 10_000)


def test_time_and_engine_are_recorded(prepared):
    (entry,) = prepared.label()
    assert set(entry.seconds) == {"storage", "decode", "engine", "write"}
    assert entry.used["precision"] == "fp32"
    assert entry.run_id == "night-1"


# ---- The filter, and columns passed through


def test_rows_that_the_filter_leaves_out_are_not_in_the_books(night):
    images = [night.png(i) if i % 4 else b"bad" for i in range(30)]
    night.write("a.parquet", range(30), image=pa.array(images, pa.binary()), price=[i % 3 for i in range(30)])
    prepared = Prepared(night, night.config(input={"shard_images": 10, "filter": [("price", "=", 0), ("id", "<", 20)]}))
    entries = prepared.label()
    tables = [prepared.tables(entry) for entry in entries]
    taken = {i for i in range(20) if i % 3 == 0}
    bad = {i for i in taken if i % 4 == 0}
    assert {i for labels, _ in tables for i in labels["image_id"].to_pylist()} == taken - bad
    assert {i for _, rejected in tables if rejected for i in rejected["image_id"].to_pylist()} == bad
    counts = [list(entry.segments.values()) for entry in entries]
    assert counts == [[[4, 3, 1]], [[3, 2, 1]], [[0, 0, 0]]]
    assert len(prepared.committed()) == 3, "a shard without a matching row is done as well"


def test_a_row_that_the_filter_takes_and_nobody_labels_stops_the_shard(night, monkeypatch):
    night.write("a.parquet", range(30))
    prepared = Prepared(night, night.config(input={"filter": [("id", ">=", 10)]}))
    read = ShardReader.read

    def lose(self, shard, batch_size=64):
        yield from ([row for row in rows if row.image_id != 17] for rows in read(self, shard, batch_size))

    monkeypatch.setattr(ShardReader, "read", lose)
    with pytest.raises(IntegrityError, match="20 images in, but 19 labelled"):
        prepared.label()
    assert prepared.committed() == {}


def test_columns_stand_after_ours_in_labels_and_quarantine_with_one_type_for_all_files(night):
    images = pa.array([night.png(1), b"bad"], pa.binary())
    day = pa.array([1234567890123456789, None], pa.timestamp("ns"))
    night.write("a.parquet", [1, 2], image=images, n=pa.array([7, 8], pa.int8()), day=day, box=[{"x": 1}, None])
    night.write("b.parquet", [3, 4], image=images, n=pa.array([9, None], pa.int64()), day=day, box=[{"x": 3}, {"x": 4}])
    prepared = Prepared(night, night.config(label={"columns": ["day", "n", "box"]}))
    entry = Labeller(prepared.task)(prepared.plan.shards[0])
    labels, quarantine = prepared.tables(entry)
    assert labels.column_names == [*COLUMNS, "day", "n", "box"]
    assert quarantine.column_names == [*QUARANTINE, "day", "n", "box"]
    for table in (labels, quarantine):
        kinds = {name: table.schema.field(name).type for name in ("day", "n")}
        assert kinds == {"day": pa.timestamp("ns"), "n": pa.int64()}
    assert labels["n"].to_pylist() == [7, 9]
    assert quarantine["n"].to_pylist() == [8, None]
    assert labels["day"].cast(pa.int64()).to_pylist() == [1234567890123456789] * 2
    assert labels["box"].to_pylist() == [{"x": 1}, {"x": 3}]
    assert quarantine["box"].to_pylist() == [None, {"x": 4}]
