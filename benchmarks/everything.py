"""Measure everything, in order, and print the tables: what `make bench` runs. Called again it does only what the log lacks.

    make bench                                                     # three hours or more on 2 quiet cores
    .venv-bench/bin/python benchmarks/everything.py --small        # a few photos, to see that it all works
    .venv-bench/bin/python benchmarks/everything.py --only labelling costs --again

Each step is a script of this folder as a process of its own. What it prints is kept beside the log as <step>.txt. A step that
has ended well is a line of the log and is not repeated, unless --again asks for it; labelling and costs also go on in the
middle. A step that fails does not hold up the others: the exit code says so at the end.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from records import DEFAULT_LOG, ROOT, Log

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Step:
    """A script with its arguments, and what makes it small; `logs` says that it writes and reads the log by itself."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    logs: bool = False

    def command(self, small: bool, log: Path, folder: Path, again: bool) -> list[str]:
        """Return the command line."""
        own = ["--log", str(log), "--folder", str(folder), *(["--again"] if again else [])] if self.logs else []
        chosen = self.small if small else self.arguments
        return [sys.executable, str(HERE / self.script), *chosen, *own]


ONE_RUN = ("--images", "200", "--runs", "1")
STEPS = (
    Step(
        "labelling", "labelling.py", (), (*ONE_RUN, "--models", "mobilenet_v2", "--peers", "ray_data_tuned"), logs=True
    ),
    Step("costs", "costs.py", (), ("--images", "800", "--shards", "200"), logs=True),
    Step("agreement", "agreement.py", ("--photos", "1000"), ("--photos", "20")),
    Step("two-nights", "two_nights.py", (), ("--images", "100")),
    Step("storage-reads", "storage_reads.py", (), ("--rounds", "1")),
    Step("scale", "scale.py", (), ("--share", "0.001")),
    Step("first-night", "first_night.py"),
)
GPU_STEP = Step(
    "labelling-gpu", "labelling.py", ("--models", "resnet50", "--peers"), (*ONE_RUN, "--models", "resnet50", "--peers"), logs=True
)  # fmt: skip


def steps(only: list[str] | None, gpu: bool) -> list[Step]:
    """Return what to do, in order: all, or what is named; resnet50 only where there is a GPU."""
    known = [STEPS[0], *([GPU_STEP] if gpu else []), *STEPS[1:]]
    return [step for step in known if only is None or step.name in only]


def run(step: Step, command: list[str], said: Path) -> int:
    """Run a step, print what it prints, keep that in a file, and return its exit code."""
    print(f"\n== {step.name}: {' '.join(command[1:])}", flush=True)
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            file.write(line)
        return process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [step.name for step in (*STEPS, GPU_STEP)]
    parser.add_argument("--only", nargs="+", choices=names, help="these steps (default: all)")
    parser.add_argument("--small", action="store_true", help="with a few photos; its log is build/bench-small.jsonl")
    parser.add_argument("--again", action="store_true", help="also what the log has")
    parser.add_argument("--log", type=Path, help=f"default: {DEFAULT_LOG}")
    options = parser.parse_args()
    path = (options.log or DEFAULT_LOG.with_stem("bench-small" if options.small else "bench")).absolute()
    folder, log, failed = path.with_suffix(""), Log(path), []
    from pipeline.processors import has_gpu

    for step in steps(options.only, has_gpu()):
        if not step.logs and not options.again and log.has(tool="step", name=step.name):
            print(f"== {step.name}: {folder / step.name}.txt has it", flush=True)
            continue
        started = perf_counter()
        code = run(step, step.command(options.small, path, folder, options.again), folder / f"{step.name}.txt")
        if code:
            failed.append(step.name)
        else:
            log.write(tool="step", name=step.name, seconds=round(perf_counter() - started, 1))
    plot = path.with_suffix(".png") if options.small else ROOT / "docs" / "benchmark.png"
    subprocess.run([sys.executable, str(HERE / "table.py"), "--log", str(path), "--plot", str(plot)], check=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
