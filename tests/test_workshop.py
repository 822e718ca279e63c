import numpy as np
import pytest

from pipeline.enginecache import EngineCache
from pipeline.errors import ModelError
from pipeline.manifest import read_manifest
from pipeline.workshop import Candidate, Node, Workshop, this_node

NODE = Node("cpu", ("avx512_bf16",), 1)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
OPENVINO = Candidate("openvino", "fp32")


@pytest.fixture
def workshop(night):
    version = night.seal("lab_cnn")

    def open_workshop():
        return Workshop(night.store, EngineCache(night.store), read_manifest(night.store, "tiny", version), NODE, 64)

    return open_workshop


@pytest.mark.parametrize("candidate", [Candidate("torch", "fp32"), Candidate("torch", "bf16"), OPENVINO], ids=str)
def test_every_engine_answers_like_the_reference(workshop, candidate):
    shop = workshop()
    np.testing.assert_allclose(shop.open(candidate)(PIXELS), shop.reference_answers(PIXELS), atol=0.05)
    assert shop.open(candidate) is shop.open(candidate)


def test_a_converted_model_and_the_references_logits_are_made_once(workshop, monkeypatch):
    first = workshop()
    expected, answer = first.reference_answers(PIXELS), first.open(OPENVINO)(PIXELS)
    monkeypatch.setattr(Workshop, "_net", lambda self: pytest.fail("cached"))
    again = workshop()
    assert np.array_equal(again.reference_answers(PIXELS), expected)
    assert np.array_equal(again.open_cached(OPENVINO, first.model_sha256(OPENVINO))(PIXELS), answer)


def test_other_photos_have_other_logits(workshop):
    shop = workshop()
    assert not np.array_equal(shop.reference_answers(PIXELS), shop.reference_answers(PIXELS[::-1].copy()))


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 99])
def test_a_damaged_converted_model_is_made_again(night, workshop, damage):
    shop = workshop()
    answer = shop.open(OPENVINO)(PIXELS)
    (path,) = [entry.path for entry in night.store.list("cache/openvino")]
    whole = night.store.read(path)
    night.store.write(path, damage(whole))
    again = workshop()
    assert np.allclose(again.open(OPENVINO)(PIXELS), answer)
    assert len(night.store.read(path)) == len(whole)


def test_a_choice_of_another_model_or_of_an_engine_that_is_gone_is_none(workshop):
    assert workshop().open_cached(OPENVINO, "another") is None
    assert workshop().open_cached(Candidate("onnx", "fp32"), None) is None


def test_damaged_weights_are_refused_as_ever(night, workshop):
    shop = workshop()
    (path,) = [entry.path for entry in night.store.list("models") if entry.path.endswith("safetensors")]
    night.store.write(path, b"damaged")
    with pytest.raises(ModelError, match="not the sealed file"):
        shop.open(OPENVINO)


@pytest.mark.parametrize(("builder", "tiny"), [("lab_cnn", True), ("linear", True)])
def test_small_networks_are_tiny(night, builder, tiny):
    manifest = read_manifest(night.store, "tiny", night.seal(builder))
    assert Workshop(night.store, EngineCache(night.store), manifest, NODE, 64).is_tiny() is tiny


def test_this_node_says_its_processor_and_threads():
    node = this_node(3)
    assert node.threads == 3
    assert node.processor
