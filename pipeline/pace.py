"""How many images a second a network answers here, in each engine that this kind of node has: as labelling would run it."""

import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context
from tempfile import TemporaryDirectory

import numpy as np
import torch

from pipeline import zoo
from pipeline.bundle import seal
from pipeline.classes import Classes
from pipeline.enginecache import EngineCache
from pipeline.engines import CPU_BATCH, EXACT, candidates, images_per_s
from pipeline.errors import ModelError
from pipeline.manifest import Architecture, read_manifest
from pipeline.refusals import first_line
from pipeline.settings import LabelSettings, ModelSettings, StorageSettings
from pipeline.storage import open_storage
from pipeline.workshop import Workshop, this_node

Rates = dict[str, float]
Refusals = dict[str, str]


def measure_pace(model: ModelSettings, num_classes: int = 1000) -> tuple[Rates, Refusals]:
    """Return images/s by engine and precision, and why the others cannot do this network.

    The bare forward pass on all cores, or on the GPU, of a network with random weights: they do not change the speed.

    Raises
    ------
    ModelError
        When there is no such network, or the machine cannot hold it.

    Notes
    -----
    In a process of its own. OpenVINO 2026.4 leaves a signal stack behind that is gone once a second precision has been
    opened, and the next signal, such as Ctrl-C, then ends the process: a segmentation fault in `kill(2)`.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_measured, model, num_classes).result()
        except BrokenProcessPool as error:
            raise ModelError(
                f"measuring {model.builder} ended its process; most likely the memory is too small"
            ) from error


def _measured(model: ModelSettings, num_classes: int) -> tuple[Rates, Refusals]:
    arguments, transforms = zoo.blueprint(model)
    names = tuple(str(index) for index in range(num_classes))
    architecture = Architecture(model.builder, arguments, "native", Classes(names, names), transforms)
    settings, node = LabelSettings(), this_node(os.cpu_count() or 1)
    shape = (CPU_BATCH, transforms.crop_px, transforms.crop_px, transforms.num_channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rates: Rates = {}
    refusals: Refusals = {}
    with TemporaryDirectory() as folder:
        store = open_storage(folder, StorageSettings())
        torch.manual_seed(0)
        version = seal(store, "pace", architecture, architecture.build().state_dict())
        manifest = read_manifest(store, "pace", version, model.builder)
        shop = Workshop(store, EngineCache(store), manifest, node, settings.batch_size)
        for candidate in (EXACT.candidate, *chain(*candidates(settings, node))):
            try:
                rates[str(candidate)] = images_per_s(shop.open(candidate), pixels, CPU_BATCH)
            except (ModelError, RuntimeError) as error:
                refusals[str(candidate)] = first_line(error)
    return rates, refusals
