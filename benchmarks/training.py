"""What training costs, against what people would write themselves: `make bench-train`, about 20 minutes on 2 quiet cores.

    .venv/bin/python benchmarks/training.py                # every part, then the table
    .venv/bin/python benchmarks/training.py --only loader memory

Photos: the 750 training and 250 validation photos of flowers5, the former as Parquet for us and Ray Data and as a folder of
files for torchvision. Each measurement is a process of its own, on the same cores, one after the other.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
DATA = ROOT.parent / "shared/data"
WEIGHTS = DATA / "weights/mobilenet_v2_imagenet.safetensors"
CORES = os.cpu_count() or 1
BATCH, SIDE, SMALL = 64, 224, 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUGMENT = {"crop_area": [0.08, 1.0], "flip": "horizontal"}
FINETUNE = {"mode": "finetune", "learning_rate": 1e-4, "batch_size": BATCH, "sanity": False}


# Ours: the pipeline without Ray, so that what is measured is the training.


def make_task(
    folder: Path, train: dict[str, Any], repeats: int = 1, builder: str = "mobilenet_v2", size_px: int | None = None
) -> Any:
    """Return a TrainTask on flowers5, its training photos so many times, example tables made."""
    import pyarrow.parquet as pq

    from pipeline.classes import classes_from_labels
    from pipeline.examples import load_examples
    from pipeline.features import Extractor
    from pipeline.settings import InputSettings, ModelSettings, SplitSettings, StorageSettings
    from pipeline.shards import make_shards
    from pipeline.sources import list_source, open_source, segments_of
    from pipeline.storage import open_storage
    from pipeline.tasks import ExamplesTask, TrainTask
    from pipeline.trainsettings import TrainSettings

    photos = folder / f"photos-{repeats}"
    if not photos.exists():
        photos.mkdir(parents=True)
        for path in sorted((DATA / "flowers5").glob("*.parquet")):
            table = pq.read_table(path)
            copies = 1 if path.name.startswith("val") else repeats
            for copy in range(copies):
                pq.write_table(table, photos / f"{copy}-{path.name}", row_group_size=100)
    source = InputSettings(
        url=str(photos), image_column="image", label_column="label", split_column="split", size_px=size_px
    )
    storage, settings = StorageSettings(), TrainSettings(**train)
    model = ModelSettings(
        builder=builder, weights=str(WEIGHTS) if builder == "mobilenet_v2" else None,
        transforms={} if builder == "mobilenet_v2" else {"resize_px": 256, "crop_px": SIDE},
    )  # fmt: skip
    cached = settings.mode == "head" and settings.cache_features
    folder_of_input, _ = open_source(source, storage)
    listing = list_source(source, storage)
    segments = (s for f in listing.files for s in segments_of(f, listing.format, source, folder_of_input))
    shards = tuple(make_shards(segments, 256))
    store, name = folder / "store", "features" if cached else "examples"
    dataset = f"flowers-{repeats}"
    extract = Extractor(
        ExamplesTask(str(store), storage, source, dataset, model, settings, name, cached, threads=CORES)
    )
    there = store / "features" / dataset / name
    for shard in shards:
        if not (there / f"{shard.id}.parquet").exists():
            extract(shard)
    examples = load_examples(open_storage(str(store), storage), dataset, name, shards, SplitSettings())
    classes = classes_from_labels(str(examples.labels[i]) for i in examples.of("train"))
    return TrainTask(
        str(store), storage, source, SplitSettings(), model, settings, 0, dataset, shards, name, classes.names, "bench",
        "2026-11-24T00:00:00+00:00",
    )  # fmt: skip


def train_ours(rank: int, task: Any, world: int, meeting: str, answer: Any, checkpoints: bool = False) -> None:
    """Train as one of `world` workers of one thread, as cluster/workergroup.py does; rank 0 puts the history into a queue."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from pipeline.allocator import keep_freed_memory
    from pipeline.checkpoints import Checkpoints
    from pipeline.fitting import prepare
    from pipeline.pulse import Pulse
    from pipeline.seat import Seat
    from pipeline.storage import open_storage
    from pipeline.training import train

    torch.set_num_threads(1)
    keep_freed_memory()
    seat, wrap = Seat(), lambda module: module
    if world > 1:
        dist.init_process_group("gloo", f"file://{meeting}", world_size=world, rank=rank)

        def reduce(sums: torch.Tensor) -> torch.Tensor:
            dist.all_reduce(sums)
            return sums

        seat = Seat(rank, world, reduce=reduce)
        wrap = lambda module: DistributedDataParallel(module, broadcast_buffers=False)  # noqa: E731
    store = open_storage(task.store, task.storage)
    lesson = prepare(task, store, seat, wrap, Pulse())
    kept = Checkpoints(store, f"bench-{os.getpid()}") if checkpoints else None
    history = train(lesson.trainee, lesson.course, seat, kept, Pulse())
    if rank == 0:
        answer.put(history)


def spawned(task: Any, world: int, folder: Path, checkpoints: bool = False) -> list[dict[str, Any]]:
    """Train with so many workers in processes of their own; return the history."""
    import torch.multiprocessing as mp

    context = mp.get_context("spawn")
    answer, meeting = context.Queue(), folder / f"meeting-{perf_counter()}"
    arguments = (task, world, str(meeting), answer, checkpoints)
    processes = [context.Process(target=train_ours, args=(rank, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    history = answer.get()
    for process in processes:
        process.join()
    return list(history)


# The parts; each prints one JSON object.


def loader_ours(folder: Path) -> dict[str, float]:
    import torch

    from pipeline.allocator import keep_freed_memory
    from pipeline.engine import normalize
    from pipeline.fitting import prepare
    from pipeline.prefetch import ahead
    from pipeline.pulse import Pulse
    from pipeline.seat import Seat
    from pipeline.storage import open_storage

    torch.set_num_threads(CORES)  # as a worker's of so many CPUs
    keep_freed_memory()
    task = make_task(folder, {**FINETUNE, "augment": AUGMENT, "cpus_per_worker": CORES})
    store = open_storage(task.store, task.storage)
    lesson = prepare(task, store, Seat(), lambda module: module, Pulse())
    course, transforms = lesson.course, lesson.architecture.transforms

    def epoch(number: int) -> Iterator[int]:
        order = course.order(number)

        def begin(step: int) -> Any:
            positions = order.positions(step, 0, 1)
            return course.inputs.begin(order.stream[positions], positions, number)

        for pixels, _ in ahead(lambda begun: begun(), ahead(begin, range(order.num_steps), depth=1)):
            yield len(normalize(pixels, transforms))

    return _rate(epoch)


def loader_torchvision(folder: Path) -> dict[str, float]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    files = _as_files(folder)
    loader = DataLoader(
        ImageFolder(str(files), _standard()), BATCH, shuffle=True, num_workers=CORES, persistent_workers=True
    )
    return _rate(lambda number: (len(pixels) for pixels, _ in loader))


def loader_ray(folder: Path) -> dict[str, float]:
    import io

    import ray
    from PIL import Image

    make_task(folder, FINETUNE)
    ray.init("local", num_cpus=CORES, logging_level="error", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    transform = _standard()

    def change(row: dict[str, Any]) -> dict[str, Any]:
        picture = Image.open(io.BytesIO(row["image"])).convert("RGB")
        return {"pixels": transform(picture).numpy(), "label": row["label"]}

    paths = [str(path) for path in (folder / "photos-1").glob("*train*.parquet")]
    data = ray.data.read_parquet(paths, columns=["image", "label"])

    def epoch(number: int) -> Iterator[int]:
        mapped = data.random_shuffle(seed=number).map(change).select_columns(["pixels"])
        for batch in mapped.iter_torch_batches(batch_size=BATCH):
            yield len(batch["pixels"])

    return _rate(epoch)


def _rate(epoch: Callable[[int], Iterator[int]]) -> dict[str, float]:
    """Return images/s over three epochs, after one that warms up."""
    sum(epoch(0))
    started, images = perf_counter(), 0
    for number in (1, 2, 3):
        images += sum(epoch(number))
    return {"images_per_s": images / (perf_counter() - started), "images": images}


def _standard() -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )  # fmt: skip


def _as_files(folder: Path, split: str = "train") -> Path:
    import pyarrow.parquet as pq

    files = folder / f"files-{split}"
    if not files.exists():
        for path in sorted((DATA / "flowers5").glob(f"{split}*.parquet")):
            for n, row in enumerate(pq.read_table(path, columns=["image", "label"]).to_pylist()):
                (files / row["label"]).mkdir(parents=True, exist_ok=True)
                (files / row["label"] / f"{path.stem}-{n}.jpg").write_bytes(row["image"])
    return files


def epoch_ours(folder: Path) -> dict[str, float]:
    settings = {**FINETUNE, "augment": AUGMENT, "epochs": 1, "workers": CORES, **_fastest()}
    return _epoch(spawned(make_task(folder, settings), CORES, folder))


def _fastest() -> dict[str, Any]:
    from pipeline.processors import cpu_info, has_bf16, vector_flags

    return {"precision": "bf16", "channels_last": True} if has_bf16(vector_flags(cpu_info())) else {}


def epoch_plain(folder: Path) -> dict[str, float]:
    """Train one epoch by the loop of every tutorial: one process on all cores, fp32, ImageFolder and DataLoader."""
    import torch
    from safetensors.torch import load_file
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision import models, transforms
    from torchvision.datasets import ImageFolder

    torch.manual_seed(0)
    net = models.mobilenet_v2()
    net.load_state_dict(load_file(WEIGHTS))
    net.classifier[1] = nn.Linear(net.last_channel, 5)
    plain = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(SIDE), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    loaders = [
        DataLoader(
            ImageFolder(str(_as_files(folder, split)), change), BATCH, shuffle=split == "train", num_workers=CORES
        )
        for split, change in (("train", _standard()), ("val", plain))
    ]
    optimizer, history = torch.optim.Adam(net.parameters(), 1e-4), []
    for _ in range(1):
        started = perf_counter()
        net.train()
        for pixels, targets in loaders[0]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(pixels), targets).backward()
            optimizer.step()
        net.eval()
        right = 0
        with torch.no_grad():
            for pixels, targets in loaders[1]:
                right += int((net(pixels).argmax(1) == targets).sum())
        history.append({"seconds": perf_counter() - started, "val_top1": right / len(loaders[1].dataset)})
    return _epoch(history)


def _epoch(history: list[dict[str, Any]]) -> dict[str, float]:
    return {"seconds": history[-1]["seconds"], "val_top1": history[-1]["val_top1"]}


def head_cached(folder: Path) -> dict[str, float]:
    return _epoch(spawned(make_task(folder, {"mode": "head", "epochs": 5, "sanity": False}), 1, folder))


def head_live(folder: Path) -> dict[str, float]:
    live = {"mode": "head", "epochs": 2, "sanity": False, "cache_features": False}
    return _epoch(spawned(make_task(folder, live), 1, folder))


def workers_1(folder: Path) -> dict[str, float]:
    return _epoch(spawned(make_task(folder, {**FINETUNE, "epochs": 2}, size_px=SMALL), 1, folder))


def workers_2(folder: Path) -> dict[str, float]:
    return _epoch(spawned(make_task(folder, {**FINETUNE, "epochs": 2, "workers": 2}, size_px=SMALL), 2, folder))


def checkpoints(folder: Path) -> dict[str, float]:
    """What a step is held up by saving a checkpoint of mobilenet_v2 with Adam's moments, and the share of two minutes that is."""
    import queue

    from pipeline.training import _Training

    held: list[float] = []
    save = _Training._save

    def timed(self: Any) -> None:
        started = perf_counter()
        save(self)
        held.append(perf_counter() - started)

    _Training._save = timed  # type: ignore[method-assign]
    task = make_task(folder, {**FINETUNE, "epochs": 1, "checkpoint_steps": 2}, size_px=SMALL)
    train_ours(0, task, 1, "", queue.Queue(), checkpoints=True)
    usual = sorted(held)[len(held) // 2]
    return {"held_s": usual, "share": usual / 120, "saves": len(held)}


def memory_3(folder: Path) -> dict[str, float]:
    return _memory(folder, 3)


def memory_12(folder: Path) -> dict[str, float]:
    return _memory(folder, 12)


def _memory(folder: Path, repeats: int) -> dict[str, float]:
    """Return the peak memory of a worker that trains on 750 photos so many times, with a cache of 64 MB, which three times fill."""
    settings = {
        "mode": "scratch",
        "epochs": 1,
        "sanity": False,
        "cache_mb": 64,
        "batch_size": BATCH,
        "augment": AUGMENT,
    }
    spawned(make_task(folder, settings, repeats, "linear"), 1, folder)
    return {"peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


PARTS: dict[str, tuple[Callable[[Path], dict[str, float]], ...]] = {
    "loader": (loader_ours, loader_torchvision, loader_ray),
    "epoch": (epoch_ours, epoch_plain),
    "head": (head_cached, head_live),
    "workers": (workers_2, workers_1),
    "checkpoints": (checkpoints,),
    "memory": (memory_3, memory_12),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"{DATA} is not there: the photos and weights that this measures with")
    if options.measure:
        part = {part.__name__: part for parts in PARTS.values() for part in parts}[options.measure]
        print(json.dumps(part(options.folder)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
        folder = options.folder or Path(scratch)
        make_task(folder, FINETUNE)
        for name in options.only or PARTS:
            for part in PARTS[name]:
                command = [sys.executable, __file__, "--measure", part.__name__, "--folder", str(folder)]
                done = subprocess.run(
                    command, capture_output=True, text=True, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
                )
                said = done.stdout.strip().splitlines()[-1] if done.returncode == 0 else done.stderr[-2000:]
                print(f"{part.__name__:<20} {said}", flush=True)


if __name__ == "__main__":
    main()
