"""Measure how fast objects are read: our storage (obstore) against obstore alone, s3fs and pyarrow.fs, from one S3 server.

    .venv/bin/python benchmarks/storage_reads.py [--rounds 3]        # needs the extra `bench`

Many small objects (1,000 of 100 kB, one after another and 16 at once) and few large ones (8 Parquet files of 64 MB, whole
and by row groups). The server is a process of its own on loopback that answers from memory and checks no signature; `bare`
reads from it through plain sockets, so that row is the limit that server and loopback set. Rounds alternate between the
clients, medians are printed, nothing is asserted.
"""

import argparse
import asyncio
import hashlib
import http.client
import io
import multiprocessing
import os
import random
import re
import statistics
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.utils import formatdate
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

NUM_SMALL, SMALL_BYTES, AT_ONCE = 1000, 100_000, 16
NUM_LARGE, GROUPS, GROUP_BYTES = 8, 16, 4 << 20
SMALL = [f"small/{i:04d}" for i in range(NUM_SMALL)]
LARGE = [f"large/{i}.parquet" for i in range(NUM_LARGE)]
Read = Callable[[str], int]


class Server(asyncio.Protocol):
    """Enough of S3 for reads: GET with ranges, and HEAD. All small objects have the same bytes, as have all large ones."""

    objects: ClassVar[dict[str, tuple[bytes, str]]] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport, self.pending = transport, b""

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while b"\r\n\r\n" in self.pending:
            head, _, self.pending = self.pending.partition(b"\r\n\r\n")
            self.answer(head.decode("latin-1"))

    def answer(self, head: str) -> None:
        method, path, _ = head.split(" ", 2)
        kind = path.partition("?")[0].split("/")[2] if path.count("/") > 1 else ""
        if kind not in self.objects:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        body, etag = self.objects[kind]
        size, status, part = len(body), "200 OK", ""
        if asked := re.search(r"\nrange: bytes=(\d*)-(\d*)", head, re.IGNORECASE):
            first = int(asked[1]) if asked[1] else size - int(asked[2])
            last = min(int(asked[2] or size - 1), size - 1) if asked[1] else size - 1
            body, status = memoryview(body)[first : last + 1], "206 Partial Content"
            part = f"content-range: bytes {first}-{last}/{size}\r\n"
        lines = (
            f'HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\netag: "{etag}"\r\nlast-modified: {formatdate(0, usegmt=True)}'
            f"\r\naccept-ranges: bytes\r\ncontent-type: application/octet-stream\r\n{part}\r\n"
        )
        self.transport.write(lines.encode())
        if method != "HEAD":
            self.transport.write(body)


def serve(ready: Connection) -> None:
    """Run the server until the process is ended; send its port first."""
    small = random.Random(0).randbytes(SMALL_BYTES)
    table = pa.table({"image": [random.Random(i).randbytes(GROUP_BYTES // 40) for i in range(40 * GROUPS)]})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=40, compression="none")
    for kind, data in (("small", small), ("large", sink.getvalue())):
        Server.objects[kind] = data, hashlib.md5(data).hexdigest()

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=256)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class Client:
    """One way to read: whole objects by `read`, random access by `open`."""

    def __init__(self, name: str, read: Callable[[str], bytes], opened: Callable[[str], Any] | None) -> None:
        self.name, self._read, self._open = name, read, opened

    def whole(self, path: str) -> int:
        return len(self._read(path))

    def by_groups(self, path: str) -> int:
        """Read all row groups, one after another, as a shard's reader does."""
        if self._open is None:
            return 0
        with closing(self._open(path)) as handle:
            parquet = pq.ParquetFile(handle, pre_buffer=True)
            return sum(parquet.read_row_group(i).nbytes for i in range(parquet.num_row_groups))


def bare(port: int) -> Client:
    local = threading.local()

    def read(path: str) -> bytes:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection("127.0.0.1", port)
        local.connection.request("GET", f"/bucket/{path}")
        body: bytes = local.connection.getresponse().read()
        return body

    return Client("bare", read, None)


def clients(port: int) -> list[Client]:
    """Return everything that is compared, each with its defaults and our time limit."""
    import obstore
    import pyarrow.fs
    import s3fs
    from obstore.store import S3Store

    from pipeline.settings import StorageSettings
    from pipeline.storage import open_storage

    endpoint = f"http://127.0.0.1:{port}"
    ours = open_storage("s3://bucket", StorageSettings(endpoint=endpoint, region="us-east-1"))
    store = S3Store("bucket", endpoint=endpoint, region="us-east-1", client_options={"allow_http": True})
    arrow = pyarrow.fs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1")
    fsspec = s3fs.S3FileSystem(
        endpoint_url=endpoint, client_kwargs={"region_name": "us-east-1"}, use_listings_cache=False
    )
    return [
        bare(port),
        Client("nightshift", ours.read, ours.open),
        Client("obstore", lambda p: bytes(obstore.get(store, p).bytes()), None),  # its reader is no file to pyarrow
        Client("pyarrow.fs", lambda p: _drained(arrow, p), lambda p: arrow.open_input_file(f"bucket/{p}")),
        Client("s3fs", lambda p: fsspec.cat_file(f"bucket/{p}"), lambda p: fsspec.open(f"bucket/{p}", "rb")),
    ]


def _drained(arrow: Any, path: str) -> bytes:
    with arrow.open_input_stream(f"bucket/{path}") as stream:
        data: bytes = stream.read()
    return data


def one_by_one(read: Read, paths: Sequence[str]) -> int:
    return sum(map(read, paths))


def together(read: Read, paths: Sequence[str]) -> int:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(read, paths))


CASES: dict[str, Callable[[Client], int]] = {
    "1,000 x 100 kB, one after another": lambda client: one_by_one(client.whole, SMALL),
    "1,000 x 100 kB, 16 at once": lambda client: together(client.whole, SMALL),
    "8 x 64 MB, whole": lambda client: one_by_one(client.whole, LARGE),
    "8 x 64 MB, whole, 8 at once": lambda client: together(client.whole, LARGE),
    "8 x 64 MB, by row groups of 4 MB": lambda client: one_by_one(client.by_groups, LARGE),
}


def measure(port: int, rounds: int) -> None:
    compared = clients(port)
    print(f"{'seconds (MB/s)':<36}" + "".join(f"{client.name:>18}" for client in compared))
    for name, case in CASES.items():
        seconds: dict[str, list[float]] = {client.name: [] for client in compared}
        moved = dict.fromkeys(seconds, 0)
        for client in compared * rounds:
            started = perf_counter()
            moved[client.name] = case(client)
            seconds[client.name].append(perf_counter() - started)
        cells = [
            f"{(s := statistics.median(seconds[key])):.2f} ({moved[key] / s / 1e6:,.0f})" if moved[key] else "-"
            for key in seconds
        ]
        print(f"{name:<36}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.update(AWS_ACCESS_KEY_ID="any", AWS_SECRET_ACCESS_KEY="any")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe()
    server = context.Process(target=serve, args=(sender,), daemon=True)
    server.start()
    try:
        measure(receiver.recv(), options.rounds)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
