from datetime import date

import pytest

from pipeline.documents import encode
from pipeline.errors import ModelError, StorageError
from pipeline.registry import (
    MULTI_LABEL,
    ONE_LABEL,
    generation,
    production,
    promote_first,
    read_beside,
    read_bundle_document,
    resolve,
    versions,
)
from pipeline.settings import InputSettings, LabelSettings, ModelSettings
from pipeline.storage import FileStorage


@pytest.fixture
def store(tmp_path):
    return FileStorage(str(tmp_path))


def seal(store, version: str, model: str = "flowers", bundle_format: int = ONE_LABEL, builder="linear") -> None:
    store.write(f"models/{model}/{version}/weights.safetensors", b"w")
    store.write(
        f"models/{model}/{version}/bundle.json",
        encode({"format": bundle_format, "version": version, "builder": builder}),
    )


def test_the_first_bundle_becomes_production_and_later_ones_do_not(store):
    assert production(store, "flowers") is None
    assert promote_first(store, "flowers", "v1", "now") is True
    assert promote_first(store, "flowers", "v2", "now") is False
    assert production(store, "flowers") == "v1"
    assert production(store, "other") is None


def test_of_eight_first_bundles_one_becomes_production(store, run_together):
    won = run_together(*[lambda i=i: promote_first(store, "flowers", f"v{i}", "now") for i in range(8)])
    assert won.count(True) == 1
    assert won.count(False) == 7
    assert production(store, "flowers") == f"v{won.index(True)}"


def test_the_version_asked_for_goes_before_production(store):
    seal(store, "v1")
    seal(store, "v2")
    promote_first(store, "flowers", "v1", "now")
    assert resolve(store, ModelSettings(name="flowers")) == "v1"
    assert resolve(store, ModelSettings(name="flowers", version="v2")) == "v2"


def test_without_a_bundle_the_message_says_how_to_get_one(store):
    with pytest.raises(ModelError, match="no model 'flowers' yet; run `nightshift train CONFIG` first"):
        resolve(store, ModelSettings(name="flowers"))
    seal(store, "v1")
    seal(store, "v9", model="flowers2")
    with pytest.raises(ModelError, match=r"no version 'v7' of model 'flowers'; it has: v1$"):
        resolve(store, ModelSettings(name="flowers", version="v7"))
    with pytest.raises(ModelError, match="it has: none"):
        resolve(store, ModelSettings(name="birds", version="v7"))


def test_a_bundle_of_code_that_the_config_does_not_name_is_refused(store):
    seal(store, "v1", builder="mynets:tiny")
    asked = ModelSettings(name="flowers", version="v1")
    with pytest.raises(
        ModelError, match=r"flowers@v1 is built by mynets:tiny.*says model\.builder: mobilenet_v2; if you trust"
    ):
        resolve(store, asked)
    assert resolve(store, asked.model_copy(update={"builder": "mynets:tiny"})) == "v1"


def test_versions_are_the_sealed_ones(store):
    seal(store, "v2")
    seal(store, "v1")
    store.write("models/flowers/v3/weights.safetensors", b"half")  # a training that was killed before it sealed
    promote_first(store, "flowers", "v1", "now")
    assert versions(store, "flowers") == ["v1", "v2"]


def test_a_bundle_of_another_format_is_refused(store):
    seal(store, "v1", bundle_format=MULTI_LABEL + 1)
    with pytest.raises(ModelError, match=r"flowers@v1 has format 3, this nightshift reads 1 and 2; label with"):
        read_bundle_document(store, "flowers", "v1")


def test_a_damaged_bundle_document_is_named(store):
    store.write("models/flowers/v1/bundle.json", b"{")
    with pytest.raises(StorageError, match=r"models/flowers/v1/bundle\.json is not valid JSON"):
        resolve(store, ModelSettings(name="flowers", version="v1"))


def test_what_lies_beside_a_bundle(store):
    assert read_beside(store, "flowers", "v1", "evaluation.json") is None
    store.write("models/flowers/v1/evaluation.json", encode({"top1": 0.9}))
    assert read_beside(store, "flowers", "v1", "evaluation.json") == {"top1": 0.9}


def test_everything_that_decides_a_label_is_in_the_generation():
    source, label = InputSettings(url="x"), LabelSettings()
    base = generation("photos", "flowers", "v1", source, label)
    assert (base.dataset, base.model) == ("photos", "flowers")
    others = [
        generation("photos", "flowers", "v2", source, label),
        generation("photos", "flowers", "v1", InputSettings(url="x", max_pixels=5), label),
        generation("photos", "flowers", "v1", InputSettings(url="x", id_column="id"), label),
        generation("photos", "flowers", "v1", InputSettings(url="x", image_column="front"), label),
        generation("photos", "flowers", "v1", InputSettings(url="x", image_column="back"), label),
        generation("photos", "flowers", "v1", InputSettings(url="x", uri_column="front"), label),
        generation("photos", "flowers", "v1", source, LabelSettings(top_k=1)),
        generation("photos", "flowers", "v1", InputSettings(url="x", filter=[("price", ">", 3)]), label),
        generation("photos", "flowers", "v1", InputSettings(url="x", filter=[("price", ">", "3")]), label),
        generation("photos", "flowers", "v1", source, LabelSettings(columns=["price"])),
        generation("photos", "flowers", "v1", source, LabelSettings(columns=["price", "shop"])),
        generation("photos", "flowers", "v1", source, LabelSettings(exact=True)),
        generation("photos", "flowers", "v1", source, LabelSettings(precision="fp32")),
        generation("photos", "flowers", "v1", source, LabelSettings(embeddings=True)),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_how_the_work_is_done_is_not_in_the_generation():
    base = generation("photos", "flowers", "v1", InputSettings(url="x"), LabelSettings())
    same = generation(
        "photos", "flowers", "v1", InputSettings(url="elsewhere", shard_images=7, label_column="label"),
        LabelSettings(batch_size=1, max_workers=4, attempts=9, max_bad_fraction=1, engine="openvino", min_agreement=0),
    )  # fmt: skip
    assert same == base


def test_the_order_of_predicates_does_not_matter_and_a_date_is_its_text():
    both = [("price", ">", 3), ("day", "=", "2026-11-24")]
    again = [("day", "=", date(2026, 11, 24)), ("price", ">", 3)]
    one, other = (
        generation("photos", "flowers", "v1", InputSettings(url="x", filter=predicates), LabelSettings())
        for predicates in (both, again)
    )
    assert one == other
