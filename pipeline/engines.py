"""Which engine labels: of those that agree with the reference, the one that answered fastest on this kind of node.

Measuring takes seconds once, then the choice is read from the store's cache. Several labellers that start on a cold cache
each measure: they do so beside each other, as they will work, and the first to finish decides for those that start later.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np

from pipeline.agreement import Agreement, measure
from pipeline.calibration import calibration_photos
from pipeline.documents import digest
from pipeline.enginecache import EngineCache
from pipeline.errors import ModelError
from pipeline.libraries import library_versions
from pipeline.logits import Engine, Logits
from pipeline.manifest import Manifest
from pipeline.processors import has_bf16
from pipeline.refusals import first_line
from pipeline.settings import LabelSettings
from pipeline.storage import Storage
from pipeline.transforms import Pixels
from pipeline.workshop import Candidate, Node, Workshop

# Raise when the code measures or computes in another way: choices of old code are then never read.
ENGINES_VERSION = 1
# Images per call when measuring on a CPU: what label.batch_size says hardly changes the rate there.
CPU_BATCH = 64
# What decides about the answers and the speed.
LIBRARIES = ("torch", "openvino", "pillow", "simplejpeg", "cykooz-resizer")
# Photos as the reference decodes them, or as the fast path does: uint8 [B, H, W, C].
Decode = Callable[[list[bytes], bool], Pixels]


@dataclass(frozen=True)
class Choice:
    """What labels, why, and what was measured; images/s are of this process, beside whatever else ran then."""

    candidate: Candidate
    exact_decoding: bool
    said: str
    agreement: dict[str, Any] = field(default_factory=dict)
    images_per_s: dict[str, float] = field(default_factory=dict)
    model_sha256: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return what the ledger says besides the engine's own description."""
        measured = {"agreement": self.agreement, "images_per_s": self.images_per_s}
        return {"decoding": "exact" if self.exact_decoding else "fast", "said": self.said, **measured}


EXACT = Choice(Candidate("reference", "fp32"), True, "label.exact: Pillow and torch fp32, no shortcuts")


def open_engine(
    store: Storage, manifest: Manifest, settings: LabelSettings, node: Node, decode: Decode,
    supply: Callable[[], Iterable[bytes]],
) -> tuple[Engine, Choice]:  # fmt: skip
    """Return the engine that labels here, from the cached choice where there is one.

    Parameters
    ----------
    decode : Decode
        Turns encoded photos into pixels; it leaves out those that do not decode.
    supply : Callable[[], Iterable[bytes]]
        Photos to compare with, asked for when the bundle has none beside it.

    Raises
    ------
    ModelError
        When label.engine or label.precision name what this node does not have, or what disagrees with the reference.
    """
    cache = EngineCache(store)
    shop = Workshop(store, cache, manifest, node, settings.batch_size, settings.embeddings)
    if settings.exact:
        return shop.open(EXACT.candidate), EXACT
    path = f"engines/{choice_key(manifest, settings, node)}.json"
    if (choice := _choice(cache.document(path))) is not None:
        engine = shop.open_cached(choice.candidate, choice.model_sha256)
        if engine is not None:
            return engine, choice
    photos = calibration_photos(store, manifest.name, manifest.version, supply)
    trial = Trial(manifest, settings, shop, decode(photos, True), decode(photos, False))
    engine, choice = trial.choose()
    if choice.agreement:  # without a photo the next shard may bring some
        first = _choice(cache.document(path))
        if first is not None and (other := shop.open_cached(first.candidate, first.model_sha256)) is not None:
            return other, first
        cache.keep_document(path, asdict(choice))
    return engine, choice


def choice_key(manifest: Manifest, settings: LabelSettings, node: Node) -> str:
    """Return what a choice holds for: this bundle, asked so, on this kind of node, with these libraries."""
    asked = settings.model_dump(include={"engine", "precision", "min_agreement", "max_difference", "batch_size"})
    if settings.embeddings:
        asked["embeddings"] = True
    libraries = [f"{name} {version or 'none'}" for name, version in library_versions(LIBRARIES).items()]
    return digest([ENGINES_VERSION, manifest.id, asked, libraries, asdict(node)])


def candidates(settings: LabelSettings, node: Node) -> Iterator[list[Candidate]]:
    """Yield groups of engines, each tried when no one of those before may be used.

    Raises
    ------
    ModelError
        When the node cannot do what was asked.
    """
    asked = settings.precision
    if node.gpu:
        if settings.engine == "openvino":
            raise ModelError("label.engine: openvino is for CPUs, and this node has a GPU; use torch, or auto")
        halves = (
            ("bf16", "fp16") if asked == "auto" else (asked,)
        )  # older GPUs only emulate bf16: measured, not assumed
        yield [Candidate("torch", half, variant) for half in halves for variant in ("", "cuda graph")]
        return
    if asked == "fp16" or (asked == "bf16" and not has_bf16(node.flags)):
        lacks = "a GPU" if asked == "fp16" else "AVX512-BF16 or AMX-BF16"
        raise ModelError(f"label.precision: {asked} needs {lacks}, which {node.processor} has not; use auto, or fp32")
    engines = ("openvino", "torch") if settings.engine == "auto" else (settings.engine,)
    precisions = ["bf16"] * has_bf16(node.flags) + ["fp32"] if asked == "auto" else [asked]
    for precision in precisions:
        yield [Candidate(engine, precision) for engine in engines]


class Trial:
    """One comparison of engines on the same photos: `exact` and `fast` are the photos' pixels by either decoder."""

    def __init__(
        self, manifest: Manifest, settings: LabelSettings, shop: Workshop, exact: Pixels, fast: Pixels
    ) -> None:
        self._manifest, self._settings, self._shop = manifest, settings, shop
        self._exact, self._fast = exact, fast if len(fast) == len(exact) else exact[:0]
        self._batch_size = settings.batch_size if shop.node.gpu else CPU_BATCH
        self._rates: dict[str, float] = {}
        self._notes: list[str] = []

    def choose(self) -> tuple[Engine, Choice]:
        """Return the fastest engine that agrees; the reference where none does and none was insisted on."""
        if not len(self._exact):
            said = "no photo to compare with yet, so no shortcuts: Pillow and torch fp32"
            return self._shop.open(EXACT.candidate), Choice(EXACT.candidate, True, said)
        expected = self._shop.reference_answers(self._exact)
        if self._reference_is_enough():
            return self._reference(expected, "a network so small is faster than decoding in any engine")
        for group in candidates(self._settings, self._shop.node):
            if found := self._best(group, expected):
                return found
        if self._settings.engine == "openvino" or self._settings.precision not in ("auto", "fp32"):
            raise ModelError(
                f"bundle {self._manifest.id}: label.engine {self._settings.engine} with label.precision "
                f"{self._settings.precision} may not label: {'; '.join(self._notes)}. Expected at least "
                f"label.min_agreement = {self._settings.min_agreement:g} of the same labels and at most "
                f"label.max_difference = {self._settings.max_difference:g}. Use auto, or other bounds"
            )
        return self._reference(expected, "; ".join(self._notes) or "no other engine runs here")

    def _reference_is_enough(self) -> bool:
        settings = self._settings
        asked = settings.engine == "openvino" or settings.precision not in ("auto", "fp32")
        return not asked and self._shop.is_tiny()

    def _rate(self, candidate: Candidate) -> float:
        rate = images_per_s(self._shop.open(candidate), self._exact, self._batch_size)
        self._rates[str(candidate)] = round(rate, 1)
        return rate

    def _best(self, group: list[Candidate], expected: Logits) -> tuple[Engine, Choice] | None:
        ready: list[tuple[float, Candidate]] = []
        for candidate in group:
            try:
                ready.append((self._rate(candidate), candidate))
            except (
                ModelError,
                RuntimeError,
            ) as error:  # RuntimeError: what engines raise when they cannot do a network
                self._notes.append(f"{candidate} cannot run it ({first_line(error)})")
        for _, candidate in sorted(ready, key=lambda pair: -pair[0]):
            engine = self._shop.open(candidate)
            if passed := self._gate(engine, candidate, expected):
                return engine, self._chosen(candidate, *passed, "")
        return None

    def _gate(self, engine: Engine, candidate: Candidate, expected: Logits) -> tuple[bool, Agreement] | None:
        """Return whether decoding must be exact and how well they agree, None when it agrees in no way."""
        for exact, pixels in ((False, self._fast), (True, self._exact)):
            found = self._measured(engine, pixels, expected) if len(pixels) else None
            if found and found.within(self._settings):
                return exact, found
            if found:
                self._notes.append(f"{candidate} with {'exact' if exact else 'fast'} decoding gives {found}")
        return None

    def _measured(self, engine: Engine, pixels: Pixels, expected: Logits) -> Agreement:
        return measure(expected, engine(pixels), self._manifest.meaning)

    def _reference(self, expected: Logits, why: str) -> tuple[Engine, Choice]:
        engine = self._shop.open(EXACT.candidate)
        exact, found = self._gate(engine, EXACT.candidate, expected) or (True, Agreement(len(expected), 1.0, 0.0))
        return engine, self._chosen(EXACT.candidate, exact, found, f" ({why})")

    def _chosen(self, candidate: Candidate, exact: bool, found: Agreement, why: str) -> Choice:
        others = ", ".join(f"{name} {rate:.0f}" for name, rate in self._rates.items() if name != str(candidate))
        rate = f" at {self._rates[str(candidate)]:.0f} images/s" if str(candidate) in self._rates else ""
        decoding = "exact" if exact else "fast"
        said = f"{candidate}, {decoding} decoding{rate}{f' (others: {others})' if others else ''}: {found}{why}"
        return Choice(candidate, exact, said, found.to_json(), dict(self._rates), self._shop.model_sha256(candidate))


def images_per_s(engine: Engine, pixels: Pixels, batch_size: int) -> float:
    """Return the best of a few batches, after one that is not counted; large networks on CPUs get fewer images."""
    some = np.resize(pixels, (8, *pixels.shape[1:]))
    engine(some)
    started = perf_counter()
    engine(some)
    per_image_s = (perf_counter() - started) / len(some)
    size = int(np.clip(1.0 / max(per_image_s, 1e-9), len(some), batch_size))
    batch, best_s = np.resize(pixels, (size, *pixels.shape[1:])), float("inf")
    for _ in range(3):
        started = perf_counter()
        engine(batch)
        best_s = min(best_s, perf_counter() - started)
    return max(size / best_s, 1 / max(per_image_s, 1e-9))


def _choice(document: dict[str, Any] | None) -> Choice | None:
    """Return the choice that a cached document holds, None for anything else."""
    try:
        return Choice(**{**document, "candidate": Candidate(**document["candidate"])}) if document else None
    except (TypeError, KeyError):
        return None
