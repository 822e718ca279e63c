"""`label.embeddings`: what enters the classifier, as a column, from every engine, in every way to read the labels."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from jobs.labels import show
from jobs.photo import label_photo
from pipeline.bundle import load_bundle
from pipeline.deltatable import sync_table
from pipeline.heads import split_head
from pipeline.labelling import Labeller
from pipeline.publication import publish
from pipeline.tables import read_schema, read_table, write_table
from pipeline.workshop import Workshop

ENGINES = [("auto", "auto"), ("torch", "fp32"), ("openvino", "fp32")]


def wanted(**label):
    return {"label": {"embeddings": True, **label}}


def test_the_column_holds_what_the_head_is_given(night, monkeypatch):
    monkeypatch.setattr(Workshop, "is_tiny", lambda self: False)
    night.write("a.parquet", range(12))
    version = night.seal("lab_cnn")
    bundle = load_bundle(night.store, "tiny", version)
    head = bundle.net.fc
    size = split_head(bundle.net)
    for engine, precision in ENGINES:
        config = night.config(**wanted(engine=engine, precision=precision))
        plan = night.plan(config)
        (entry,) = night.label(config, plan, version).values()
        table = read_table(night.store, entry.labels.path)
        assert table.schema.field("embedding").type == pa.list_(pa.float32(), size)
        assert table.schema.names.index("embedding") == table.schema.names.index("segment") + 1
        features = np.stack(table["embedding"].to_numpy())
        logits = head(torch.from_numpy(features)).detach().numpy()
        assert logits.argmax(axis=1).tolist() == table["class_index"].to_pylist()
        chances = torch.softmax(torch.from_numpy(logits), 1).max(dim=1).values
        np.testing.assert_allclose(chances, table["confidence"].to_numpy(), atol=0.01)
        assert entry.used["agreement"]["cosine"] > 0.999
        assert "embeddings at a cosine of 0.99" in entry.used["said"] or "of 1.0" in entry.used["said"]


def test_the_labels_are_those_without_embeddings_and_nothing_else_has_the_column(night):
    night.write("a.parquet", range(12))
    version = night.seal("lab_cnn")
    tables = []
    for config in (night.config(), night.config(**wanted())):
        (entry,) = night.label(config, night.plan(config), version).values()
        tables.append(read_table(night.store, entry.labels.path))
    assert tables[1].drop_columns("embedding").equals(tables[0])


def test_a_shard_without_a_good_image_has_the_same_column(night):
    night.write("a.parquet", [1, 2], image=pa.array([b"", b"x"], pa.binary()))
    config = night.config(**wanted())
    (entry,) = night.label(config, night.plan(config), night.seal()).values()
    assert (entry.counts.labelled, entry.counts.quarantined) == (0, 2)
    assert read_schema(night.store, entry.labels.path).field("embedding").type == pa.list_(pa.float32(), 64)


def test_choices_and_converted_models_are_kept_apart(night, monkeypatch):
    """A labeller with embeddings and one without share a store's cache, in either order."""
    monkeypatch.setattr(Workshop, "is_tiny", lambda self: False)
    night.write("a.parquet", range(6))
    version = night.seal("lab_cnn")
    for _ in range(2):
        for asked in (wanted(engine="openvino"), {"label": {"engine": "openvino"}}):
            config = night.config(**asked)
            plan = night.plan(config)
            entry = Labeller(night.task(config, version))(plan.shards[0])
            assert entry.used["engine"] == "openvino"
            assert ("embedding" in read_schema(night.store, entry.labels.path).names) == config.label.embeddings


def test_joined_files_and_copies_have_the_column(night, tmp_path):
    for n in range(20):
        night.write(f"{n}.parquet", [n, 100 + n])
    config = night.config(input={"shard_images": 2}, **wanted())
    view = night.whole(config, night.seal())
    assert len(view.files) == 1
    rows = read_table(night.store, view.files[0])
    assert rows.schema.field("embedding").type == pa.list_(pa.float32(), 64)
    for suffix in ("parquet", "csv", "jsonl"):
        show(config, str(tmp_path / f"x.{suffix}"), 1, False)
    assert pq.read_table(tmp_path / "x.parquet")["embedding"].to_pylist() == rows["embedding"].to_pylist()
    lines = (tmp_path / "x.jsonl").read_text().splitlines()
    assert [json.loads(line)["embedding"] for line in lines] == rows["embedding"].to_pylist()


def test_a_view_whose_older_files_have_none_is_copied_with_nulls(night, tmp_path):
    version = night.seal()
    night.write("a.parquet", [1, 2])
    old = night.label(night.config(), night.plan(night.config()), version)
    night.write("b.parquet", [3])
    config = night.config(**wanted(relabel="new"))
    plan = night.plan(config)
    labeller = Labeller(night.task(config, version))
    new = {shard.id: labeller(shard) for shard in plan.shards if shard.id not in old}
    parts = [(night.task(config, version).generation, new), (night.task(night.config(), version).generation, old)]
    publish(night.store, parts, plan, {"model": f"tiny@{version}", "run_id": "r", "published_at": "now"})
    show(config, str(tmp_path / "x.parquet"), 1, False)
    found = pq.read_table(tmp_path / "x.parquet")
    assert pc.is_null(found["embedding"]).to_pylist() == [True, True, False]
    assert len(found["embedding"][2]) == 64


def test_embeddings_of_two_sizes_are_copied_as_lists(night, tmp_path):
    """As those of two models, under `label.relabel: new`."""
    night.write("a.parquet", [1, 2])
    night.write("b.parquet", [3])
    config = night.config(input={"shard_images": 2}, **wanted())
    view = night.whole(config, night.seal())
    table = read_table(night.store, view.files[1])
    place = table.schema.names.index("embedding")
    other = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    write_table(night.store, view.files[1], table.set_column(place, "embedding", other))
    show(config, str(tmp_path / "x.parquet"), 1, False)
    assert [len(row) for row in pq.read_table(tmp_path / "x.parquet")["embedding"].to_pylist()] == [64, 64, 2]


def test_a_delta_table_declares_lists_and_has_the_same_numbers(night):
    import duckdb
    from deltalake import DeltaTable

    night.write("a.parquet", range(8))
    config = night.config(output={"table": "delta"}, **wanted())
    view = night.whole(config, night.seal())
    assert sync_table(night.store, config.storage, "data")
    handle = DeltaTable(f"{night.store.url}/labels/data")
    (field,) = [field for field in handle.schema().fields if field.name == "embedding"]
    assert json.loads(field.to_json())["type"]["elementType"] == "float"
    delta, plain = pa.table(handle.scan()), read_table(night.store, view.files[0])
    found, expected = ({row["image_id"]: row["embedding"] for row in t.to_pylist()} for t in (delta, plain))
    assert found == expected
    base = duckdb.connect()
    base.register("labels", delta)
    assert base.sql("select distinct len(embedding) from labels").fetchall() == [(64,)]


def test_the_readmes_line_shows_it(night):
    import re

    import duckdb
    from test_readme import README

    night.write("a.parquet", range(7))
    config = night.config(**wanted())
    night.whole(config, night.seal())
    (sql,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    files, _ = sql.replace("store/", f"{night.store.url}/").replace("flowers5", config.dataset).split(";")[:2]
    base = duckdb.connect()
    base.execute(files)
    nearest = (
        "select a.image_id = b.image_id from read_parquet(getvariable('files')) a, read_parquet(getvariable('files')) b "
        "where a.image_id = 3 order by list_cosine_similarity(a.embedding, b.embedding) desc limit 1"
    )
    assert base.execute(nearest).fetchall() == [(True,)]


def test_one_photo_is_answered_like_its_row(night, tmp_path, capsys):
    night.write("a.parquet", [1])
    config = night.config(**wanted(exact=True))
    view = night.whole(config, night.seal())
    (tmp_path / "1.png").write_bytes(pq.read_table(night.data / "a.parquet")["image"][0].as_py())
    label_photo(config, str(tmp_path / "1.png"), True)
    row = json.loads(capsys.readouterr().out)
    assert row["embedding"] == pytest.approx(read_table(night.store, view.files[0])["embedding"][0].as_py(), abs=1e-6)


def test_only_asking_changes_the_generations_name(night):
    version = night.seal()
    plain, asked = (night.task(night.config(**sections), version).generation for sections in ({}, wanted()))
    assert plain != asked
    assert asdict(plain) == asdict(night.task(night.config(label={"embeddings": False}), version).generation)
