"""The command line. Parsing imports nothing heavy; each command imports its world when it runs."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

EPILOG = """\
exit codes:
  0  complete
  1  failed
  2  usage: the command, the config or the input must be corrected
  3  finished, but with failed shards or files, more bad images than allowed, or held back by a check
  4  nothing new, although the config requires it (label.require_new)
  5  stopped early (Ctrl-C, label.deadline, label.max_images); the same command continues

a first night:
  nightshift demo                        everything once, on the digits that scikit-learn carries
  nightshift plan configs/local.yaml     what is there
  nightshift train configs/local.yaml    a model for it
  nightshift nightly configs/local.yaml  label what is new, publish, report: put this line into cron
"""

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": (
        "run a whole night on handwritten digits",
        "Writes 1,797 digits as Parquet, then plan, train, evaluate, label and report.",
    ),
    "plan": (
        "find out what the input holds",
        "Lists the input, reads footers, and puts new images into shards. Images keep their shard.",
    ),
    "train": (
        "train or adopt a model",
        "Trains as train.mode says and seals a bundle. The first bundle becomes production.",
    ),
    "tune": (
        "try other values of train, judged on validation images",
        "Trials of tune.space, several at a time; a table of what did best. `train --trial best` trains with that.",
    ),
    "evaluate": (
        "judge the model on held-out images",
        "Accuracy with its interval, per class, confusion matrix, misclassified images.",
    ),
    "robustness": (
        "ask the model about spoilt pictures",
        "Noise, blur, fog, turns, patches, ... in five severities: errors, and labels that flip. On validation images.",
    ),
    "promote": (
        "make the newest training production, if it is better",
        "Judges it and production on the same images; otherwise exit 3 and a reason. Another version: --set model.version=...",
    ),
    "rollback": ("make the version before this one production", "Asked again, the version before that."),
    "label": (
        "label what is not labelled yet, and publish",
        "Labels the newest plan's open shards, checks the books, publishes the view.",
    ),
    "nightly": ("plan, label what is new, publish, report", "The one command for a scheduler."),
    "labels": (
        "read the current view",
        "Shows the published labels, or copies them into one Parquet, CSV or JSON lines file.",
    ),
    "status": ("what the store holds", "Plans, models, generations, the current view and the last runs."),
    "report": ("write the page of a run", "One self-contained HTML page, beside the run's run.json."),
    "models": (
        "the networks that model.builder can name",
        "Parameters, multiply-adds, gradient, published accuracy; with CONFIG also its network; on request the speed here.",
    ),
    "clean": (
        "remove what is old and no longer needed",
        "Lists superseded labels, old generations, features, trainings, plans and runs; --yes removes them.",
    ),
    "doctor": (
        "check this machine, the cluster and the store",
        "What is installed, what the session has, can the store be read and written.",
    ),
}


def _date(text: str) -> str:
    from datetime import datetime

    try:
        return datetime.strptime(text, "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a date as YYYY-MM-DD, such as 2026-11-24 (it is {text!r})"
        ) from None


def _days(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 36500:  # a day protects the runs that are at work
        raise argparse.ArgumentTypeError(f"expected a whole number of days, 1 to 36500 (it is {text!r})")
    return int(text)


DATE = {
    "type": _date,
    "metavar": "YYYY-MM-DD",
    "help": "logical date, for schedulers: recorded, and ${date} in the config (default there: today)",
}
DRY_RUN = {"action": "store_true", "help": "say what would be labelled, the time and the cost; write nothing"}

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        "--folder": {"default": "demo", "help": "where it writes (default: ./demo)"},
        "--fresh": {"action": "store_true", "help": "remove what an earlier demo left there, and start over"},
    },
    "plan": {"--date": DATE},
    "train": {
        "--again": {"action": "store_true", "help": "train although this training is finished"},
        "--trial": {"metavar": "ID", "help": "with the values of a trial of `nightshift tune`, or of the `best`"},
    },
    "evaluate": {
        "--split": {"metavar": "NAME", "help": "split to judge on, or several as train+val (default: test, else val)"},
    },
    "robustness": {"--split": {"metavar": "NAME", "help": "split whose images are spoilt (default: val)"}},
    "label": {
        "--date": DATE,
        "--dry-run": DRY_RUN,
        "--image": {"metavar": "PHOTO", "help": "label one image file and print the best classes; nothing is written"},
        "--retry-quarantined": {"action": "store_true", "help": "label shards with quarantined rows again"},
    },
    "nightly": {"--date": DATE, "--dry-run": DRY_RUN},
    "labels": {
        "--to": {"metavar": "FILE", "help": "copy the view into FILE: .parquet, .csv or .jsonl"},
        "--limit": {"type": int, "default": 20, "help": "rows to show (default: 20)"},
    },
    "report": {"--run": {"metavar": "ID", "help": "run to show (default: the last one)"}},
    "models": {
        "--measure": {"metavar": "NAMES", "help": "images/s here of these builders: mobilenet_v2,resnet18"},
        "--plot": {"metavar": "FILE", "help": "draw accuracy against cost: .png, .svg or .pdf"},
    },
    "clean": {
        "--older-than": {"type": _days, "required": True, "metavar": "DAYS", "help": "keep what is younger"},
        "--yes": {"action": "store_true", "help": "remove it (default: only say what would be removed)"},
        "--models": {"action": "store_true", "help": "also versions of the model that nothing needs"},
    },
}


OPTIONAL_CONFIG = {"doctor": "also check its store and cluster", "models": "also list its network"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        "nightshift",
        description="Label image data sets at night: sharded, exactly once, on one machine or a Ray cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(parser, "before_")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (short, long) in COMMANDS.items():
        sub = commands.add_parser(name, help=short, description=f"{long}", epilog="exit codes: see nightshift --help")
        if name in OPTIONAL_CONFIG:
            sub.add_argument("config", nargs="?", metavar="CONFIG", help=OPTIONAL_CONFIG[name])
        elif name != "demo":
            sub.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/local.yaml")
        for flag, settings in OPTIONS.get(name, {}).items():
            sub.add_argument(flag, **settings)
        _common(sub, "")
    return parser


def _common(parser: argparse.ArgumentParser, prefix: str) -> None:
    """Options that may stand before or after the command."""
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--set",
        dest=f"{prefix}overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a config key: --set label.top_k=3",
    )
    group.add_argument(
        "--run-id",
        dest=f"{prefix}run_id",
        metavar="ID",
        help="name of the run's record (default: time, command, chance)",
    )
    group.add_argument(
        "--json", dest=f"{prefix}json", action="store_true", help="make the last line of stdout the run's record"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = build_parser().parse_args(arguments)
    options.overrides = options.before_overrides + options.overrides
    options.run_id = options.run_id or options.before_run_id
    options.json = options.json or options.before_json
    from pipeline.errors import NightshiftError
    from pipeline.refusals import printable

    logging.getLogger("nightshift").setLevel(logging.WARNING)  # whatever level a library gives to all loggers
    try:
        with _stoppable():
            return _handlers()[options.command](options)
    except NightshiftError as error:
        outcome = printable(str(error))
        print(f"nightshift {options.command}: {outcome}", file=sys.stderr)
        if options.json:
            print(json.dumps({"command": options.command, "exit_code": error.exit_code, "outcome": outcome}))
        return error.exit_code
    except KeyboardInterrupt:
        print(f"nightshift {options.command}: stopped early; the same command continues it", file=sys.stderr)
        return 5
    except BrokenPipeError:  # `nightshift labels ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM stop a run alike: the first ends it with its record, the second is too early, the third is final."""
    times = 0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal times
        times += 1
        if times != 2:
            raise KeyboardInterrupt
        os.write(2, b"stopping already: the session ends and the run's record is written; once more to leave at once\n")

    signals = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _handlers() -> dict[str, Callable[[Any], int]]:
    recorded = ("plan", "train", "tune", "evaluate", "robustness", "promote", "rollback", "nightly")
    own = {
        "demo": _demo, "label": _label, "labels": _labels, "status": _status, "report": _report, "models": _models,
        "clean": _clean, "doctor": _doctor,
    }  # fmt: skip
    return {**dict.fromkeys(recorded, _recorded), **own}


def _recorded(options: Any) -> int:
    """Run a command that leaves a record in the store."""
    from importlib import import_module

    from jobs.config import read_config
    from jobs.runs import Run, execute

    overrides = [*options.overrides, *([f"date={options.date}"] if getattr(options, "date", None) else [])]
    run = Run(options.command, read_config(options.config, overrides), options.run_id)
    if getattr(options, "dry_run", False):
        from jobs.estimate import estimate

        return estimate(run, options.json)
    names = {
        "train": ("again", "trial"),
        "evaluate": ("split",),
        "robustness": ("split",),
        "label": ("retry_quarantined",),
    }.get(options.command, ())
    extra = {name: getattr(options, name) for name in names}
    code = execute(run, lambda current: import_module(f"jobs.{options.command}").work(current, **extra))
    if options.command == "nightly" and code != 1:
        from jobs.report import announce_report

        announce_report(run.config, run.store, run.record)
    if options.json:
        print(json.dumps(run.record, ensure_ascii=False))
    return code


def _label(options: Any) -> int:
    if not options.image:
        return _recorded(options)
    from jobs.config import read_config
    from jobs.photo import label_photo

    return label_photo(read_config(options.config, options.overrides), options.image, options.json)


def _labels(options: Any) -> int:
    from jobs.config import read_config
    from jobs.labels import show

    return show(read_config(options.config, options.overrides), options.to, options.limit, options.json)


def _status(options: Any) -> int:
    from jobs.config import read_config
    from jobs.status import show

    return show(read_config(options.config, options.overrides), options.json)


def _report(options: Any) -> int:
    from jobs.config import read_config
    from jobs.report import show

    return show(read_config(options.config, options.overrides), options.run or options.run_id, options.json)


def _models(options: Any) -> int:
    from jobs.models import show

    return show(options.config, options.overrides, options.measure, options.plot, options.json)


def _clean(options: Any) -> int:
    from jobs.clean import clean
    from jobs.config import read_config

    config = read_config(options.config, options.overrides)
    return clean(config, options.older_than, options.yes, options.models, options.json)


def _demo(options: Any) -> int:
    from jobs.demo import run_demo

    return run_demo(options.folder, options.fresh, options.overrides, options.run_id, options.json)


def _doctor(options: Any) -> int:
    from jobs.doctor import examine

    return examine(options.config, options.overrides, options.json)
