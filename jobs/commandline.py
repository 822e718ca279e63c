"""The command line's surface: commands, options and the help page. Parsing imports nothing heavy."""

import argparse
from collections.abc import Sequence
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
    "approve": (
        "publish what a check held back",
        "The labels of a night that was held (exit 3) go into the view. The only one that waits, or --run.",
    ),
    "reject": ("never publish what a check held back", "The view goes on without them; a decision stays."),
    "history": (
        "the last nights, a line each",
        "Images, bad share, shift of the labels, confidence, speed, cost, and how each ended.",
    ),
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
        "What is installed, what the session has, can the store be read and written. With --address every node of a cluster.",
    ),
    "submit": (
        "run one of these commands on a cluster, and follow it",
        "Sends this nightshift and the resolved config to the Jobs API of a Ray cluster, shows the job's log, and ends with "
        "its exit code. What stands behind -- goes to the command: submit train CONFIG -- --again.",
    ),
    "manifest": (
        "print what Kubernetes needs for it",
        "A nightly schedule for KubeRay (RayCronJob), as the config's section kubernetes says: kubectl apply -f -.",
    ),
    "jobs": ("the jobs that were submitted to a cluster", "One line each: id, how it stands, command, data set, when."),
    "logs": (
        "show a submitted job's log and follow it to its end",
        "From the first line; ends with the job's exit code. Ctrl-C leaves the job running.",
    ),
    "stop": (
        "end a submitted job",
        "As Ctrl-C would: it writes its record and publishes nothing half. The rest is for the next run.",
    ),
}

# What leaves a record of its run in the store. These, and no others, can be submitted.
RECORDED = (
    "plan", "train", "tune", "evaluate", "robustness", "promote", "rollback", "label", "nightly",
    "approve", "reject",
)  # fmt: skip


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
ADDRESS = {
    "metavar": "URL",
    "help": "of the cluster's dashboard, such as http://head:8265 (default: $RAY_API_SERVER_ADDRESS)",
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
    "approve": {"--run": {"metavar": "ID", "dest": "held", "help": "the run that was held back"}},
    "reject": {"--run": {"metavar": "ID", "dest": "held", "help": "the run that was held back"}},
    "history": {"--limit": {"type": int, "default": 30, "help": "nights to show (default: 30)"}},
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
    "doctor": {
        "--address": {
            "metavar": "ADDRESS",
            "help": "of a cluster: its dashboard's URL, host:port of its head, or auto",
        },
    },
    "submit": {
        "--address": ADDRESS
        | {"help": "of the cluster's dashboard (default: cluster.address, $RAY_API_SERVER_ADDRESS)"},
        "--id": {
            "metavar": "ID",
            "help": "name of the job: while one of this name runs, or after it succeeded, no other starts",
        },
        "--no-wait": {"action": "store_true", "help": "do not follow the job; print its id"},
        "--date": DATE,
        "--env": {
            "action": "append",
            "default": [],
            "metavar": "NAME[=VALUE]",
            "help": "environment of the job, taken from here without a value; no secrets: the dashboard shows it",
        },
        "--with": {
            "action": "append",
            "default": [],
            "metavar": "PATH",
            "dest": "along",
            "help": "a module or folder of your own to send along, such as the one that model.builder names",
        },
    },
    "manifest": {
        "--once": {"action": "store_true", "help": "one night now (RayJob), no schedule"},
        "--cronjob": {"action": "store_true", "help": "schedule by a plain CronJob that creates the RayJob"},
    },
    "jobs": {"--address": ADDRESS},
    "logs": {"--address": ADDRESS, "--no-wait": {"action": "store_true", "help": "what is there now; do not follow"}},
    "stop": {"--address": ADDRESS, "--no-wait": {"action": "store_true", "help": "do not wait for its end"}},
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
        if name in ("submit", "manifest"):
            sub.add_argument("job", choices=RECORDED, metavar="COMMAND", help=", ".join(RECORDED))
        if name in OPTIONAL_CONFIG:
            sub.add_argument("config", nargs="?", metavar="CONFIG", help=OPTIONAL_CONFIG[name])
        elif name in ("logs", "stop"):
            sub.add_argument("job", metavar="ID", help="of `nightshift jobs`")
        elif name not in ("demo", "jobs"):
            sub.add_argument("config", metavar="CONFIG", help="YAML file, such as configs/local.yaml")
        for flag, settings in OPTIONS.get(name, {}).items():
            sub.add_argument(flag, **settings)
        _common(sub, "")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; what stands behind `--` belongs to the command that is submitted."""
    parser, own, behind = build_parser(), list(arguments), []
    if "--" in own:
        own, behind = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    options.overrides = options.before_overrides + options.overrides
    options.run_id = options.run_id or options.before_run_id
    options.json = options.json or options.before_json
    options.behind = behind
    if options.command == "submit":
        _check_behind(parser, parser.parse_args([options.job, options.config, *behind]))
    elif behind:
        parser.error(f"-- is for submit: {options.command} takes its options without it")
    return options


def _check_behind(parser: argparse.ArgumentParser, behind: argparse.Namespace) -> None:
    """Refuse behind `--` what submit itself must know: it reads the config, and what it sends is settled."""
    given = {
        "--set": behind.overrides or behind.before_overrides,
        "--run-id": behind.run_id or behind.before_run_id,
        "--json": behind.json or behind.before_json,
        "--date": getattr(behind, "date", None),
    }
    if misplaced := [flag for flag, value in given.items() if value]:
        parser.error(f"{misplaced[0]} belongs before --: submit reads it as well")
    if getattr(behind, "image", None):
        parser.error("--image reads a file of this machine, and prints what it sees: run it here")


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
