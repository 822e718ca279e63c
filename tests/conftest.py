"""What tests share: real small files, an S3 server on loopback, one standing Ray session. Missing means skip, or fail in CI."""

import base64
import email.utils
import hmac
import io
import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from cluster.dispatch import Pool
from pipeline.settings import InputSettings, StorageSettings
from pipeline.storage import Storage, open_storage

SHARED = Path(__file__).resolve().parents[2] / "shared"


def lacking(what: str) -> NoReturn:
    """Skip with a reason on a bare machine; fail where NIGHTSHIFT_NO_SKIP says that everything must be there."""
    if os.environ.get("NIGHTSHIFT_NO_SKIP"):
        pytest.fail(f"{what} is missing, and NIGHTSHIFT_NO_SKIP is set")
    pytest.skip(f"needs {what}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests that raise real signals go first.

    In a process that has run all of the others such a signal ended in a segmentation fault, in no code of ours: some
    native library that they load does not survive it. Users' processes get theirs in test_chaos, for real.
    """
    items.sort(key=lambda item: item.get_closest_marker("signals") is None)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photos and weights."""
    folder = SHARED / "data"
    if not folder.is_dir():
        lacking(f"the real data in {folder}")
    return folder


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """Return encoded pictures: `png(seed, size)`; equal arguments give equal bytes, other seeds other pictures."""

    def make(
        seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L", kind: str = "PNG", **options: Any
    ) -> bytes:
        channels = len(Image.new(mode, (1, 1)).getbands())
        shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels, mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    """Write columns as a Parquet file: `write_parquet(path, columns, rows_per_group)`."""

    def write(path: Path, columns: dict[str, Any], rows_per_group: int = 10) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
        return path

    return write


@pytest.fixture
def storage_settings() -> StorageSettings:
    return StorageSettings()


@pytest.fixture
def table_input() -> Callable[..., InputSettings]:
    """Return the input section of a Parquet folder with the columns id, image, label."""

    def make(folder: Path, **changes: Any) -> InputSettings:
        values = {"url": str(folder), "image_column": "image", "id_column": "id", "label_column": "label"}
        return InputSettings(**(values | changes))

    return make


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of a real S3 server on loopback."""
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        lacking("moto's server (pip install 'moto[s3,server]')")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, StorageSettings]:
    """A fresh bucket: its URL and the storage section that reaches it."""
    import boto3

    for key, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(key, value)
    bucket = f"nightshift{uuid.uuid4().hex[:8]}"  # no hyphen: GCS clients encode it, and moto does not decode it
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}", StorageSettings(endpoint=s3_server, region="us-east-1", timeout_s=10, max_retries=1)


AZURE_ACCOUNT = "devstoreaccount1"  # Azurite's own, as its documentation prints it
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="session")
def azure_server() -> Iterator[str]:
    """Endpoint of Azurite, which speaks Azure's blob protocol, on loopback; `make servers` installs it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nightshift"
    program = next(iter(sorted(cache.glob("azurite-*/node_modules/.bin/azurite-blob"))), None)
    if program is None or not shutil.which("node"):
        lacking("Azurite (make servers)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry")
    server = subprocess.Popen([program, "--blobPort", str(port), *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def azure(azure_server: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, StorageSettings]:
    """A fresh container: its URL and the storage section that reaches it."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", AZURE_ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)
    container = f"nightshift-{uuid.uuid4().hex[:8]}"
    stamp, version = email.utils.formatdate(usegmt=True), "2021-08-06"
    asked = (
        f"x-ms-date:{stamp}\nx-ms-version:{version}\n/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{container}\nrestype:container"
    )
    words = "PUT" + "\n" * 12 + asked
    signature = base64.b64encode(hmac.digest(base64.b64decode(AZURE_KEY), words.encode(), "sha256")).decode()
    headers = {"x-ms-date": stamp, "x-ms-version": version, "authorization": f"SharedKey {AZURE_ACCOUNT}:{signature}"}
    url = f"{azure_server}/{container}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)).close()
    return f"az://{container}", StorageSettings(endpoint=azure_server, timeout_s=10, max_retries=1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One standing session of 4 (pretended) CPUs for all tests that need Ray."""
    from cluster.session import session
    from pipeline.settings import ClusterSettings

    os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")  # workers inherit what the S3 tests need
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
    with session(ClusterSettings(num_cpus=4)):
        yield


@pytest.fixture
def run_together() -> Callable[..., list[Any]]:
    """Run functions in threads that start at the same moment; return results or exceptions in order."""

    def run(*functions: Callable[[], Any]) -> list[Any]:
        barrier, results = threading.Barrier(len(functions)), [None] * len(functions)

        def call(index: int) -> None:
            barrier.wait()
            try:
                results[index] = functions[index]()
            except Exception as error:  # returned to the test, which decides
                results[index] = error

        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


class Night:
    """A small store, worked on in this process without Ray: write, plan, seal, label, publish."""

    def __init__(self, folder: Path, png: Callable[..., bytes]) -> None:
        self.data, self.png, self.store = folder / "data", png, open_storage(str(folder / "store"), StorageSettings())

    def config(self, **sections: Any) -> Any:
        """Return a whole config of this store; sections are merged over a Parquet input with id, image and label."""
        from jobs.config import Config

        source = {"url": str(self.data), "image_column": "image", "id_column": "id", "label_column": "label"}
        grey = {"resize_px": 8, "crop_px": 8, "color": "L", "mean": [0.5], "std": [0.5]}
        document: dict[str, Any] = {"store": self.store.url, "input": source}
        document["model"] = {"name": "tiny", "builder": "linear", "transforms": grey}
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section} if isinstance(section, dict) else section
        return Config.model_validate(document)

    def write(self, name: str, ids: Sequence[Any], rows_per_group: int = 10, **columns: Any) -> Path:
        """Write a Parquet file of pictures; its rows' labels go round ant, bee, cat. Columns given replace these."""
        self.data.mkdir(parents=True, exist_ok=True)
        images = [self.png(hash_of(image_id)) for image_id in ids]
        labels = [("ant", "bee", "cat")[hash_of(image_id) % 3] for image_id in ids]
        table = pa.table({"id": ids, "image": pa.array(images, pa.binary()), "label": labels} | columns)
        pq.write_table(table, self.data / name, row_group_size=rows_per_group)
        return self.data / name

    def plan(self, config: Any) -> Any:
        """Write the next plan snapshot of the input as it is now, and return it."""
        from pipeline.plans import Plan, read_plan, write_plan
        from pipeline.shards import make_shards, update_shards
        from pipeline.sources import list_source, open_source, segments_of

        listing, (folder, _) = list_source(config.input, config.storage), open_source(config.input, config.storage)
        previous = read_plan(self.store, config.dataset)
        kept = update_shards(previous.shards if previous else (), {file.identity for file in listing.files})
        known = {segment.key for shard in kept for segment in shard.live}
        cut = [s for file in listing.files for s in segments_of(file, listing.format, config.input, folder)]
        new = make_shards((s for s in cut if s.key not in known), config.input.shard_images)
        plan = Plan(config.dataset, previous.n + 1 if previous else 1, (*kept, *new), (), listing.ignored)
        write_plan(self.store, plan, "2026-11-24T02:00:00+00:00")
        return plan

    def seal(
        self, builder: str = "linear", seed: int = 0, change: Callable[[Any], None] | None = None, size_px: int = 8,
        thresholds: tuple[float, ...] | None = None,
    ) -> str:  # fmt: skip
        """Seal a model of ant, bee and cat with random weights, `change` applied to its network; return its version."""
        import torch

        from pipeline.bundle import Architecture, seal
        from pipeline.classes import Classes
        from pipeline.registry import promote_first
        from pipeline.transforms import Transforms

        names, grey = ("ant", "bee", "cat"), Transforms(size_px, size_px, "L", (0.5,), (0.5,))
        made = Architecture(builder, {"size_px": size_px, "in_channels": 1}, "native", Classes(names, names), grey)
        torch.manual_seed(seed)
        net = made.build()
        if change:
            change(net)
        version = seal(self.store, "tiny", made, net.state_dict(), thresholds=thresholds)
        promote_first(self.store, "tiny", version, "2026-11-24T01:00:00+00:00")
        return version

    def task(self, config: Any, version: str, run_id: str = "night-1") -> Any:
        """Return what a labeller must know."""
        from pipeline.registry import generation
        from pipeline.tasks import LabelTask

        asked = generation(config.dataset, "tiny", version, config.input, config.label)
        return LabelTask(config.store, config.storage, config.input, config.label, asked, version, run_id, 2)

    def label(self, config: Any, plan: Any, version: str, run_id: str = "night-1") -> dict[str, Any]:
        """Label and commit all shards of a plan; return their ledger."""
        from pipeline.labelling import Labeller

        labeller = Labeller(self.task(config, version, run_id))
        return {shard.id: labeller(shard) for shard in plan.shards}

    def publish(self, config: Any, plan: Any, version: str, ledger: dict[str, Any]) -> Any:
        """Publish, and return the view and whether it is new."""
        from pipeline.publication import publish

        about = {"model": f"tiny@{version}", "run_id": "night-1", "published_at": "2026-11-24T03:00:00+00:00"}
        return publish(self.store, [(self.task(config, version).generation, ledger)], plan, about, config.output)

    def whole(self, config: Any, version: str) -> Any:
        """Plan, label and publish what the input holds; return the view."""
        plan = self.plan(config)
        return self.publish(config, plan, version, self.label(config, plan, version))[0]


def hash_of(value: Any) -> int:
    """Return the same small number for the same id, in every process."""
    return zlib.crc32(str(value).encode()) % 1000


@pytest.fixture
def night(tmp_path: Path, png: Callable[..., bytes]) -> Night:
    """A small store without Ray."""
    return Night(tmp_path, png)


class LocalRay:
    """Stands where `cluster.dispatch` says ray: a future is a piece of work, done in this process when it is asked for."""

    def __init__(self) -> None:
        from ray import exceptions

        self.exceptions, self.sessions, self.most = exceptions, 0, 0
        self.cancelled: list[Any] = []

    def is_initialized(self) -> bool:
        return True

    def wait(self, futures: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        self.most = max(self.most, len(futures))
        return futures[-1:], futures[:-1]  # the last first: nobody may count on the order

    def get(self, future: Callable[[], Any]) -> Any:
        try:
            return future()
        except self.exceptions.RayError:
            raise
        except Exception as error:  # as Ray does with whatever a task raises
            raise self.exceptions.RayTaskError(
                "run", "Traceback ...", error, "", 1, "::1"
            ).as_instanceof_cause() from None

    def cancel(self, future: Any, force: bool) -> None:
        self.cancelled.append(future)


class LocalPool(Pool):
    """`cluster.workers.ActorPool` and `TaskPool` with workers in this process."""

    def __init__(
        self, factory: Callable[[], Callable[..., Any]], min_workers: int, max_workers: int | None, size: Any = None,
        places: int = 1,
    ) -> None:  # fmt: skip
        self.places = places
        self.workers = list(range(max_workers or 2))
        self.retired: list[int] = []
        self._factory = factory
        self._functions: dict[int, Callable[..., Any]] = {}

    def submit(self, worker: int, item: Any, halvings: int) -> Callable[[], Any]:
        return lambda: self._function(worker)(item, halvings)

    def retire(self, worker: int) -> None:
        self.retired.append(worker)

    def _function(self, worker: int) -> Callable[..., Any]:
        if worker not in self._functions:
            self._functions[worker] = self._factory()
        return self._functions[worker]

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def local_ray(monkeypatch: pytest.MonkeyPatch) -> LocalRay:
    """Everything but Ray is real, in this process; `sessions` counts how often a session was asked for."""
    local = LocalRay()

    @contextmanager
    def session(settings: Any) -> Iterator[None]:
        local.sessions += 1
        yield

    monkeypatch.setattr("cluster.dispatch.ray", local)
    monkeypatch.setattr("cluster.session.session", session)
    monkeypatch.setattr("cluster.labeller.ActorPool", LocalPool)
    monkeypatch.setattr("cluster.resources.available", lambda resource: 0.0)
    monkeypatch.setattr(
        "cluster.footers.TaskPool", lambda function: LocalPool(lambda: lambda item, _: function(item), 1, 4)
    )
    return local


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, the run's record, and what it said on stderr."""

    code: int
    record: dict[str, Any]
    said: str


@pytest.fixture
def nightshift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command of the command line in this process: `nightshift(config, "label", "--set", "label.top_k=1")`."""
    from jobs.cli import main

    def run(config: Any, command: str, *arguments: str) -> Ended:
        path = write_config(tmp_path / "night.yaml", config)
        capsys.readouterr()
        code = main([command, str(path), "--json", *arguments])
        said = capsys.readouterr()
        lines = said.out.splitlines()
        return Ended(code, json.loads(lines[-1]) if lines else {}, said.err)

    return run


def write_config(path: Path, config: Any) -> Path:
    """Write a config as the YAML file that a person would have."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def published(storage: Storage, dataset: str) -> list[tuple[Any, str, str]]:
    """Return (id, label, content hash) of all rows of the current view, sorted."""
    from pipeline.publication import read_view
    from pipeline.tables import read_table

    view = read_view(storage, dataset)
    assert view is not None, "nothing is published"
    columns = ("image_id", "label", "content_hash")
    tables = [read_table(storage, path, columns).select(columns) for path in view.files]
    return sorted(
        row for table in tables for row in zip(*(column.to_pylist() for column in table.columns), strict=True)
    )


@pytest.fixture(scope="session")
def class_folders() -> Callable[..., Path]:
    """Write `<split>/<class>/<n>.png` below a folder: noise around one grey per class, so that every model learns it."""

    def write(
        root: Path,
        num: dict[str, int] | None = None,
        classes: tuple[str, ...] = ("cat", "dog", "mug"),
        size: tuple[int, int] = (9, 8),
    ) -> Path:
        random = np.random.default_rng(len(classes))
        for split, count in (num or {"train": 14, "val": 5, "test": 4}).items():
            for number, name in enumerate(classes):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for n in range(count):
                    noise = random.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
                    grey = np.uint8(180 * number // max(1, len(classes) - 1))
                    Image.fromarray(noise + grey, "RGB").save(folder / f"{n:03d}.png")
        return root

    return write


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> Callable[[str], str]:
    """Return what writes a module into the working directory, and gives its name, which no other test has."""
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> str:
        name = f"own_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


@pytest.fixture(scope="session")
def training_task() -> Callable[..., Any]:
    """Return the TrainTask of a folder of images, its example tables made in this process: no plan, no Ray."""
    import torch

    from pipeline.classes import classes_from_labels
    from pipeline.examples import load_examples
    from pipeline.features import Extractor
    from pipeline.settings import ModelSettings, SplitSettings
    from pipeline.shards import make_shards
    from pipeline.sources import list_source, open_source, segments_of
    from pipeline.storage import open_storage
    from pipeline.tasks import ExamplesTask, TrainTask
    from pipeline.trainsettings import TrainSettings
    from pipeline.truths import names_in

    torch.set_num_threads(1)  # as a worker does

    def make(
        images: Path,
        store: Path,
        train: dict[str, Any],
        model: dict[str, Any],
        shard_images: int = 10,
        key: str = "key",
        size_px: int | None = None,
    ) -> TrainTask:
        source = InputSettings(url=str(images), shard_images=shard_images, size_px=size_px)
        storage = StorageSettings()
        folder, _ = open_source(source, storage)
        files = list_source(source, storage).files
        shards = tuple(make_shards((s for f in files for s in segments_of(f, "images", source, folder)), shard_images))
        settings, network, split = TrainSettings(**train), ModelSettings(**model), SplitSettings()
        cached = settings.mode == "head" and settings.cache_features
        name = "features" if cached else "examples"
        extract = Extractor(ExamplesTask(str(store), storage, source, "images", network, settings, name, cached))
        for shard in shards:
            extract(shard)
        examples = load_examples(open_storage(str(store), storage), "images", name, shards, split)
        classes = classes_from_labels(name for i in examples.of("train") for name in names_in(examples.labels[i]))
        return TrainTask(
            str(store),
            storage,
            source,
            split,
            network,
            settings,
            0,
            "images",
            shards,
            name,
            classes.names,
            key,
            "2026-11-24T00:00:00+00:00",
        )

    return make


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Judge shards in this process; which, and which are given up, is the fixture's to say."""
    from judging import Workers

    import cluster.labeller
    from jobs.runs import Run

    workers = Workers()
    monkeypatch.setattr(cluster.labeller, "over_shards", workers.over_shards)
    monkeypatch.setattr(Run, "start_cluster", lambda run: None)
    return workers
