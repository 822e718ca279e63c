import io
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.documents import encode, read_document
from pipeline.enginecache import EngineCache
from pipeline.engines import Choice, candidates, choice_key, images_per_s, open_engine
from pipeline.errors import AccessDeniedError, ModelError
from pipeline.manifest import read_manifest
from pipeline.settings import LabelSettings
from pipeline.workshop import Candidate, Node, Workshop

ROOT = Path(__file__).resolve().parent.parent
BF16, PLAIN, GPU = Node("new", ("avx512_bf16",), 1), Node("old", ("avx2",), 1), Node("new", ("avx512_bf16",), 1, "L4")


def pixels_of(photos: list[bytes], exact: bool) -> np.ndarray:
    pictures = [np.asarray(Image.open(io.BytesIO(photo)))[:, :, None] for photo in photos]
    return np.stack(pictures) if pictures else np.empty((0, 8, 8, 1), np.uint8)


class Opening:
    """A sealed model and twelve photos; opens its engine as a labeller does."""

    def __init__(self, night, builder: str = "lab_cnn") -> None:
        self.night, self.manifest = night, read_manifest(night.store, "tiny", night.seal(builder))
        self.photos = [night.png(n) for n in range(12)]

    def __call__(self, node: Node = BF16, store=None, decode=pixels_of, **settings):
        label = LabelSettings(**settings)
        return open_engine(store or self.night.store, self.manifest, label, node, decode, lambda: self.photos)

    def choices(self) -> list[str]:
        return [entry.path for entry in self.night.store.list("cache/engines")]


@pytest.fixture
def opening(night):
    return Opening(night)


@pytest.fixture
def large(monkeypatch):
    """No network counts as tiny: engines are compared."""
    monkeypatch.setattr(Workshop, "is_tiny", lambda self: False)


@pytest.mark.parametrize(
    ("node", "settings", "groups"),
    [
        (BF16, {}, ["openvino bf16, torch bf16", "openvino fp32, torch fp32"]),
        (PLAIN, {}, ["openvino fp32, torch fp32"]),
        (BF16, {"engine": "torch"}, ["torch bf16", "torch fp32"]),
        (BF16, {"engine": "openvino", "precision": "fp32"}, ["openvino fp32"]),
        (GPU, {}, ["torch bf16, torch bf16 cuda graph, torch fp16, torch fp16 cuda graph"]),
        (GPU, {"precision": "fp16"}, ["torch fp16, torch fp16 cuda graph"]),
    ],
)
def test_what_is_tried_depends_on_the_node_and_on_what_was_asked(node, settings, groups):
    assert [", ".join(map(str, group)) for group in candidates(LabelSettings(**settings), node)] == groups


@pytest.mark.parametrize(
    ("node", "settings", "words"),
    [
        (PLAIN, {"precision": "bf16"}, "label.precision: bf16 needs AVX512-BF16 or AMX-BF16, which old has not"),
        (BF16, {"precision": "fp16"}, "label.precision: fp16 needs a GPU"),
        (GPU, {"engine": "openvino"}, "openvino is for CPUs"),
    ],
)
def test_what_a_node_cannot_do_is_refused(node, settings, words):
    with pytest.raises(ModelError, match=words):
        list(candidates(LabelSettings(**settings), node))


def test_exact_is_the_reference_and_asks_for_no_photo(opening):
    opening.photos = None
    engine, choice = opening(exact=True)
    assert (str(choice.candidate), choice.exact_decoding) == ("torch fp32 reference", True)
    assert engine.describe()["precision"] == "fp32"
    assert opening.choices() == []


def test_a_tiny_network_is_the_references_and_measures_nothing(opening):
    _, choice = opening()
    assert str(choice.candidate) == "torch fp32 reference"
    assert choice.agreement == {"photos": 12, "top1": 1.0, "difference": 0.0}
    assert choice.images_per_s == {}
    assert not choice.exact_decoding


def test_the_fastest_that_agrees_is_chosen_and_said(opening, large, monkeypatch):
    speeds = {"FastTorchEngine": 7.0, "OpenVINOEngine": 9.0}
    monkeypatch.setattr("pipeline.engines.images_per_s", lambda engine, *_: speeds[type(engine).__name__])
    engine, choice = opening()
    assert engine.describe()["engine"] == "openvino"
    assert choice.said.startswith("openvino bf16, fast decoding at 9 images/s (others: torch bf16 7): the reference's")
    assert choice.images_per_s == {"openvino bf16": 9.0, "torch bf16": 7.0}
    assert (choice.agreement["photos"], choice.agreement["top1"]) == (12, 1.0)


def test_a_choice_is_read_from_the_cache_the_next_time(opening, large, monkeypatch):
    _, first = opening(engine="torch")
    monkeypatch.setattr("pipeline.engines.Trial", None)
    assert opening(engine="torch")[1] == first


@pytest.mark.parametrize("damaged", [b"", b"{}", b'{"candidate": 3}', b'{"candidate": {"engine": "onnx"}, "said": ""}'])
def test_a_damaged_choice_is_made_again(opening, large, damaged):
    _, first = opening(engine="torch")
    (path,) = opening.choices()
    opening.night.store.write(path, damaged)
    assert opening(engine="torch")[1].candidate == first.candidate
    assert read_document(opening.night.store, path)["candidate"]["engine"] == "torch"


def test_a_choice_of_another_conversion_is_made_again(opening):
    opening(engine="openvino")
    (path,) = opening.choices()
    whole = read_document(opening.night.store, path)
    opening.night.store.write(path, encode({**whole, "model_sha256": "0" * 64}))
    opening(engine="openvino")
    assert read_document(opening.night.store, path)["model_sha256"] == whole["model_sha256"]


def test_a_store_that_cannot_be_written_labels_all_the_same(opening):
    class ReadOnly:
        def __getattr__(self, name):
            return getattr(opening.night.store, name)

        def write(self, path, data):
            raise AccessDeniedError("read-only")

        create = write

    engine, choice = opening(store=ReadOnly(), engine="openvino")
    assert engine.describe()["engine"] == "openvino"
    assert choice.agreement["photos"] == 12


def test_of_labellers_that_measure_together_the_first_to_finish_decides(opening, large, monkeypatch):
    _, choice = opening(engine="torch")
    (path,) = opening.choices()
    first = asdict(replace(choice, said="the first"))
    opening.night.store.write(path, encode(first))
    real, looks = EngineCache.document, []

    def late(self, path):
        looks.append(path)
        return real(self, path) if len(looks) > 1 else None

    monkeypatch.setattr(EngineCache, "document", late)
    assert opening(engine="torch")[1].said == "the first"
    assert read_document(opening.night.store, path) == first


def biased(engine_name: str):
    """Return a way to open engines where one of them is wrong."""
    real = Workshop.open

    def opened(self, candidate):
        engine = real(self, candidate)
        if candidate.engine != engine_name:
            return engine

        def wrong(pixels):
            return engine(pixels)[:, ::-1] * np.float32(5)

        wrong.describe = engine.describe
        return wrong

    return opened


def test_an_engine_that_disagrees_is_passed_over_and_the_reason_said(opening, large, monkeypatch):
    monkeypatch.setattr(Workshop, "open", biased("openvino"))
    assert opening()[1].candidate.engine == "torch"
    monkeypatch.setattr(Workshop, "open", biased("torch"))
    _, choice = opening(engine="torch")
    assert str(choice.candidate) == "torch fp32 reference"
    assert "torch bf16 with fast decoding gives the reference's label on" in choice.said


@pytest.mark.parametrize("settings", [{"engine": "openvino"}, {"engine": "torch", "precision": "bf16"}])
def test_an_engine_that_was_insisted_on_and_disagrees_is_refused_with_figures(opening, monkeypatch, settings):
    monkeypatch.setattr(Workshop, "open", biased(settings["engine"]))
    with pytest.raises(ModelError, match=r"may not label: .* of 12 photos, .*label.min_agreement = 0.95 .*Use auto"):
        opening(**settings)
    assert opening.choices() == []


def test_fast_decoding_that_disagrees_is_not_used(opening):
    def decode(photos, exact):
        pixels = pixels_of(photos, exact)
        return pixels if exact else 255 - pixels

    _, choice = opening(decode=decode, max_difference=0.001)
    assert choice.exact_decoding
    assert choice.describe()["decoding"] == "exact"


def test_fast_decoding_that_loses_a_photo_is_not_used(opening):
    _, choice = opening(decode=lambda photos, exact: pixels_of(photos[: None if exact else -1], exact))
    assert choice.exact_decoding


def test_an_engine_that_cannot_do_the_network_drops_out_with_a_word(opening, large, monkeypatch):
    def broken(self, candidate):
        raise ModelError("OpenVINO cannot convert")

    monkeypatch.setattr(Workshop, "_openvino", broken)
    assert opening()[1].candidate.engine == "torch"
    with pytest.raises(ModelError, match=r"openvino bf16 cannot run it .OpenVINO cannot convert"):
        opening(engine="openvino")


def test_without_a_photo_there_is_no_shortcut_and_nothing_is_cached(opening):
    opening.photos = []
    _, choice = opening()
    assert choice.exact_decoding
    assert "no photo" in choice.said
    assert opening.choices() == []


def test_a_choice_holds_for_what_was_asked_on_this_kind_of_node(opening):
    label, others = LabelSettings(), [LabelSettings(engine="torch"), LabelSettings(min_agreement=0.9)]
    keys = [choice_key(opening.manifest, settings, BF16) for settings in (label, *others)]
    keys += [choice_key(opening.manifest, label, node) for node in (PLAIN, GPU, Node("new", ("avx512_bf16",), 2))]
    assert len(set(keys)) == 6
    assert choice_key(opening.manifest, LabelSettings(top_k=1, attempts=9), BF16) == keys[0]


def test_images_per_s_counts_whole_batches():
    seen = []
    assert images_per_s(lambda pixels: seen.append(len(pixels)), np.zeros((3, 8, 8, 1), np.uint8), 64) > 0
    assert seen == [8, 8, 64, 64, 64]


def test_a_labeller_with_a_cached_choice_loads_no_torch(night):
    night.write("a.parquet", list(range(20)))
    config = night.config(label={"engine": "openvino"})
    version, plan = night.seal("lab_cnn"), night.plan(config)
    first = night.label(config, plan, version)
    code = (
        "import pickle, sys\nfrom pipeline.labelling import Labeller\n"
        "task, shard = pickle.load(sys.stdin.buffer)\nentry = Labeller(task)(shard)\n"
        "print(entry.used['engine'], entry.counts.labelled, [m for m in ('torch', 'torchvision', 'ray') if m in sys.modules])"
    )
    sent = pickle.dumps((night.task(config, version), plan.shards[0]))
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True, cwd=ROOT)
    assert done.stdout.decode().split(maxsplit=2) == ["openvino", "20", "[]\n"]
    assert first[plan.shards[0].id].used["engine"] == "openvino"


def test_a_choice_survives_its_document():
    choice = Choice(Candidate("torch", "bf16"), False, "said", {"top1": 1.0}, {"torch bf16": 3.0})
    assert choice.describe() == {
        "decoding": "fast", "said": "said", "agreement": {"top1": 1.0}, "images_per_s": {"torch bf16": 3.0},
    }  # fmt: skip
