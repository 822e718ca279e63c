"""Measure what labelling costs besides the images: an empty shard, memory as the images grow, a second labeller.

    .venv-bench/bin/python benchmarks/costs.py                      # about 8 minutes on 2 cores
    .venv-bench/bin/python benchmarks/costs.py --only empty_shards

An empty shard goes through the dispatch loop to a real labeller's actor, which does nothing but commit it to the ledger.
Memory is unique to the process (USS), the peak of the driver and of any labeller, at a quarter of the images and at all of
them. One labeller is measured on one CPU that it shares with its driver and its decoding (the other cores are taken away
from it), and on the whole machine; two have two. Every measurement is a line of --log; what it has is not measured again.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from bench import SHARED, Bench
from labelling import add_options, folder_for
from records import Log, machine

MODEL = "mobilenet_v2"
KINDS = ("empty_shards", "memory", "labellers")
# (labellers, CPUs of the whole process; None: all)
STAFFS = ((1, 1), (1, None), (2, None))


def open_committer(store: str) -> Any:
    """Return a worker's function that commits a shard in which nothing was to be labelled."""
    from pipeline.layout import Generation
    from pipeline.ledger import LedgerEntry, commit
    from pipeline.settings import StorageSettings
    from pipeline.storage import open_storage
    from pipeline.tables import Written

    storage, asked = open_storage(store, StorageSettings()), Generation("empty", "model", "0")
    labels = Written("nothing", 0, 0, "0" * 64)
    return lambda shard, halvings: commit(storage, asked, LedgerEntry(shard.id, "run", {}, labels, None))


def empty_shards(num_shards: int) -> dict[str, Any]:
    """Return the milliseconds of an empty shard between the first and the last one; all are in the ledger afterwards."""
    from cluster.labeller import over_shards
    from cluster.session import session
    from pipeline.layout import Generation
    from pipeline.ledger import read_ledger
    from pipeline.settings import ClusterSettings, LabelSettings, StorageSettings
    from pipeline.shards import Segment, Shard
    from pipeline.storage import open_storage

    shards = [Shard((Segment(f"{number}.jpg", 1, "1", 0, 1, 1),)) for number in range(num_shards)]
    gone = [Shard(shard.segments, frozenset(segment.key for segment in shard.segments)) for shard in shards]
    with tempfile.TemporaryDirectory(prefix="nightshift-empty-") as store, session(ClusterSettings()):
        ended = []
        for _ in over_shards(gone, partial(open_committer, store), LabelSettings(), at_once=2):
            ended.append(perf_counter())
        done = read_ledger(open_storage(store, StorageSettings()), Generation("empty", "model", "0"), gone)
    if len(done) != num_shards:
        sys.exit(f"{len(done)} of {num_shards} empty shards are in the ledger")
    return {"shards": num_shards, "ms": round(1000 * (ended[-1] - ended[0]) / (num_shards - 1), 2)}


def memory(folder: Path, log: Log, images: int, again: bool) -> None:
    """Measure the peaks at a quarter of the images and at all of them."""
    for num_images in (images // 4, images):
        if again or not log.has(tool="memory", images=num_images):
            bench = Bench(folder, log, num_images)
            bench.ready(MODEL)
            bench.ours(MODEL, f"{MODEL}-memory-{num_images}", watch=True, tool="memory")


def labellers(folder: Path, log: Log, images: int, runs: int, again: bool) -> None:
    """Measure one and two labellers in turn, so often."""
    for run in range(1, runs + 1):
        lacking = [
            (number, cpus)
            for number, cpus in STAFFS
            if again or not log.has(tool="labellers", images=images, asked=[number, cpus], run=run)
        ]
        if lacking:
            bench = Bench(folder, log, images)
            bench.ready(MODEL)
        for number, cpus in lacking:
            night = f"{MODEL}-{number}-on-{cpus or 'all'}-run{run}"
            bench.ours(MODEL, night, labellers=number, cpus=cpus, tool="labellers", asked=[number, cpus], run=run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shards", type=int, default=1000, help="empty ones")
    parser.add_argument("--runs", type=int, default=1, help="of one and two labellers")
    add_options(parser, 8000)
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"the real photos are not there ({SHARED})")
    print(machine())
    log = Log(options.log)
    with folder_for(options.folder) as folder:
        if "empty_shards" in options.only and (options.again or not log.has(tool="empty_shard", shards=options.shards)):
            log.write(tool="empty_shard", **empty_shards(options.shards))
        if "memory" in options.only:
            memory(folder, log, options.images, options.again)
        if "labellers" in options.only:
            labellers(folder, log, options.images, options.runs, options.again)


if __name__ == "__main__":
    main()
