from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import hash_of, published

from pipeline.storage import open_storage

LABELS = ("ant", "bee", "cat")


@pytest.fixture
def model(night):
    return night.seal()


def counts(record):
    return tuple(record[key] for key in ("images_in", "labelled", "quarantined", "skipped", "failed_shards"))


def forms(night):
    """Write the same 24 images in four forms with the same ids; return the input sections by form."""
    ids = [f"{LABELS[n % 3]}/{n:02d}.png" for n in range(24)]
    files = {image_id: night.png(hash_of(image_id)) for image_id in ids}
    tables = {
        "bytes/data.parquet": {"id": ids, "image": pa.array(list(files.values()), pa.binary())},
        "uris/data.parquet": {"id": ids, "uri": [f"../folder/{image_id}" for image_id in ids]},
    }
    objects = {f"folder/{image_id}": data for image_id, data in files.items()}
    for name, columns in tables.items():
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink, row_group_size=8)
        objects[name] = sink.getvalue().to_pybytes()
    objects["table/data.csv"] = "\n".join(["id,uri", *(f"{i},../folder/{i}" for i in ids)]).encode()
    none = {"image_column": None, "id_column": None, "label_column": None}
    uris = {"image_column": None, "uri_column": "uri", "label_column": None}
    sections = {
        "bytes": {"label_column": None},
        "uris": uris,
        "table": uris,
        "folder": none,
    }
    return SimpleNamespace(ids=ids, objects=objects, sections=sections)


def section_of(made, form, place):
    section = {"url": f"{place}/{form}", "shard_images": 8, **made.sections[form]}
    if section.get("uri_column"):
        section["allowed_prefixes"] = [f"{place}/folder"]
    return section


@pytest.fixture
def expected(night, model, nightshift, local_ray, tmp_path):
    """The rows that an uninterrupted run in this process publishes of the folder form."""
    made = forms(night)
    place = open_storage(str(tmp_path / "input"), night.config().storage)
    for name, data in made.objects.items():
        place.write(name, data)
    nightshift(night.config(input=section_of(made, "folder", place.url)), "label")
    rows = published(night.store, "folder")
    assert [row[0] for row in rows] == sorted(made.ids)
    return made, place.url, rows


@pytest.mark.parametrize("form", ["bytes", "uris", "table"])
def test_every_form_on_local_files_gives_the_same_rows(expected, night, nightshift, form):
    made, place, rows = expected
    ended = nightshift(night.config(input=section_of(made, form, place)), "label")
    assert counts(ended.record) == (24, 24, 0, 0, 0)
    assert published(night.store, form) == rows


@pytest.mark.parametrize("form", ["bytes", "uris", "table", "folder"])
def test_every_form_on_an_object_store_gives_the_same_rows(expected, night, nightshift, s3, form):
    made, _, rows = expected
    bucket, settings = s3
    place = open_storage(f"{bucket}/input", settings)
    for name, data in made.objects.items():
        place.write(name, data)
    night.store = open_storage(f"{bucket}/store", settings)
    night.seal()
    section = section_of(made, form, place.url)
    config = night.config(input=section, storage=settings.model_dump())
    ended = nightshift(config, "label")
    assert counts(ended.record) == (24, 24, 0, 0, 0)
    assert published(night.store, form) == rows
    assert counts(nightshift(config, "label").record) == (0, 0, 0, 24, 0)


@pytest.mark.parametrize(("place", "form", "workers", "batch_size"), [("local", "bytes", 4, 1), ("s3", "uris", 2, 7)])
def test_actors_of_a_ray_session_give_the_same_rows(
    ray_session, night, model, nightshift, s3, tmp_path, place, form, workers, batch_size
):
    made = forms(night)
    bucket, settings = s3 if place == "s3" else (str(tmp_path), night.config().storage)
    source = open_storage(f"{bucket}/input", settings)
    for name, data in made.objects.items():
        source.write(name, data)
    night.store = open_storage(f"{bucket}/store", settings)
    version = night.seal()
    changes = {"storage": settings.model_dump(), "label": {"max_workers": workers, "batch_size": batch_size}}
    config = night.config(input=section_of(made, form, source.url), **changes)
    assert counts(nightshift(config, "label").record) == (24, 24, 0, 0, 0)
    rows = published(night.store, form)
    folder = night.config(input=section_of(made, "folder", source.url), storage=settings.model_dump())
    night.whole(folder, version)
    assert rows == published(night.store, "folder")
