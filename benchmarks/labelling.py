"""Measure labelling against the peers: whole process against whole process, the same photos, the same weights, in turn.

    .venv-bench/bin/python benchmarks/labelling.py            # both models, all peers, three runs: two hours on 2 cores
    .venv-bench/bin/python benchmarks/labelling.py --models mobilenet_v2 --peers ray_data_tuned --runs 1

Each run labels the same photos with nightshift (`nightshift nightly`: plan, label, ledger, publication, report) and with
each peer of ../shared/peers, unchanged; each run begins with another tool, and the ratio is taken within a run. Ours
starts with an empty data set each time; compiled models and the agreement gate's result are in the store's cache after the
first night, which is logged by itself (`cold`). Every measurement is a line of JSON in --log. What the log has is not
measured again: so it may take several calls, with some peers each; ours is measured anew beside each. Nothing is asserted.
`table.py` makes the table of it.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import SHARED, Bench
from records import DEFAULT_LOG, OURS, Log, machine, missing, pairs, rotated

MODELS = ("mobilenet_v2", "resnet18", "resnet50")
PEERS = ("ray_data_tuned", "daft_docs", "ray_data_docs")


def prepare(bench: Bench, model: str) -> None:
    """Adopt the model, label once with nothing in the store's cache, and measure what the machine could do at most."""
    from limits import limits

    bench.ready(model)
    bench.log.write(tool="limits", model=model, **limits(str(bench.store), model, bench.photos))


def measure(bench: Bench, models: list[str], peers: list[str], runs: int, again: bool) -> None:
    """Do what the log lacks of every run, run by run."""
    prepared = set()
    for run in range(1, runs + 1):
        for model in models:
            known = [] if again else bench.log.records()
            tools = missing(known, model, peers, bench.num_images, run)
            if tools and model not in prepared:
                prepare(bench, model)
                prepared.add(model)
            for tool in rotated(tools, run):
                if tool == OURS:
                    bench.ours(model, f"{model}-run{run}", run=run)
                else:
                    bench.peer(tool, model, run)
            for peer in peers:
                found = pairs(bench.log.records(), model, peer, bench.num_images)
                said = ", ".join(f"{ratio:.2f}" for _, ratio in found)
                print(f"after run {run}: {model} against {peer}: {said}", flush=True)


@contextmanager
def folder_for(path: Path | None) -> Iterator[Path]:
    """Yield the folder that was asked for and keep it, or one that is gone afterwards."""
    if path is None:
        with tempfile.TemporaryDirectory(prefix="nightshift-bench-") as name:
            yield Path(name)
    else:
        path.mkdir(parents=True, exist_ok=True)
        yield path.absolute()


def add_options(parser: argparse.ArgumentParser, images: int) -> None:
    """Add what all scripts that label photos ask for."""
    parser.add_argument("--images", type=int, default=images)
    parser.add_argument(
        "--folder", type=Path, help="keep photos and store here for later calls (default: a temporary one)"
    )
    parser.add_argument("--log", type=Path, default=DEFAULT_LOG, help=f"lines are appended (default: {DEFAULT_LOG})")
    parser.add_argument("--again", action="store_true", help="measure also what the log has")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="none: nightshift alone")
    add_options(parser, 8000)
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit(f"the real photos and the peers are not there ({SHARED})")
    print(machine())
    with folder_for(options.folder) as folder:
        bench = Bench(folder, Log(options.log), options.images)
        measure(bench, options.models, options.peers, options.runs, options.again)


if __name__ == "__main__":
    main()
