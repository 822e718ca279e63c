import numpy as np
import pytest

from pipeline.enginecache import EngineCache
from pipeline.errors import AccessDeniedError, TransientError

LOGITS = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_what_is_kept_is_found_again(night):
    cache = EngineCache(night.store)
    cache.keep_document("a.json", {"x": 1})
    cache.keep_logits("b.safetensors", LOGITS)
    cache.keep_model("c.zip", b"model")
    assert (cache.document("a.json"), cache.model("c.zip")) == ({"x": 1}, b"model")
    assert np.array_equal(cache.logits("b.safetensors"), LOGITS)


@pytest.mark.parametrize("data", [None, b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_what_is_absent_or_damaged_counts_as_absent(night, data):
    if data is not None:
        night.store.write("cache/x", data)
    assert EngineCache(night.store).document("x") is None
    assert EngineCache(night.store).logits("x") is None


@pytest.mark.parametrize("error", [TransientError("503"), AccessDeniedError("403")])
def test_a_store_that_refuses_costs_time_only(error):
    class Refusing:
        def read(self, path, version=None):
            raise error

        def write(self, path, data):
            raise error

    cache = EngineCache(Refusing())
    cache.keep_document("a", {})
    cache.keep_logits("a", LOGITS)
    cache.keep_model("a", b"")
    assert (cache.document("a"), cache.logits("a"), cache.model("a")) == (None, None, None)
