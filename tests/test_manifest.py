import pytest

from pipeline.bundle import load_bundle
from pipeline.documents import encode, read_document
from pipeline.errors import ModelError
from pipeline.manifest import read_manifest


def test_a_manifest_is_the_bundle_without_its_network(night):
    version = night.seal()
    manifest, bundle = read_manifest(night.store, "tiny", version), load_bundle(night.store, "tiny", version)
    assert (manifest.id, manifest.architecture) == (f"tiny@{version}", bundle.architecture)
    assert (manifest.temperature, manifest.weights_sha256) == (bundle.temperature, bundle.weights_sha256)


def test_a_manifest_is_read_without_weights_and_a_changed_one_is_refused(night):
    version = night.seal()
    night.store.delete(f"models/tiny/{version}/weights.safetensors")
    assert read_manifest(night.store, "tiny", version).architecture.classes.names == ("ant", "bee", "cat")
    path = f"models/tiny/{version}/bundle.json"
    night.store.write(path, encode({**read_document(night.store, path), "temperature": 2.0}))
    with pytest.raises(ModelError, match=rf"tiny@{version}: bundle.json is not the sealed file"):
        read_manifest(night.store, "tiny", version)
