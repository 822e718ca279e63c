"""What tests share: real small files, an S3 server on loopback, one standing Ray session. Missing means skip, or fail in CI."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.settings import InputSettings, StorageSettings

SHARED = Path(__file__).resolve().parents[2] / "shared"


def lacking(what: str) -> NoReturn:
    """Skip with a reason on a bare machine; fail where NIGHTSHIFT_NO_SKIP says that everything must be there."""
    if os.environ.get("NIGHTSHIFT_NO_SKIP"):
        pytest.fail(f"{what} is missing, and NIGHTSHIFT_NO_SKIP is set")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real photos and weights."""
    folder = SHARED / "data"
    if not folder.is_dir():
        lacking(f"the real data in {folder}")
    return folder


@pytest.fixture
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
    import uuid

    import boto3

    for key, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(key, value)
    bucket = f"nightshift-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}", StorageSettings(endpoint=s3_server, region="us-east-1", timeout_s=10, max_retries=1)


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
