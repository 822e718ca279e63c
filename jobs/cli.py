"""The command line: one handler for each command, which imports its world when it runs; signals, errors, exit codes."""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jobs.commandline import RECORDED, parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
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
    own = {
        "demo": _demo, "label": _label, "labels": _labels, "status": _status, "report": _report, "models": _models,
        "history": _history, "clean": _clean, "doctor": _doctor, "submit": _submit, "manifest": _manifest, "jobs": _jobs,
        "logs": _logs, "stop": _stop,
    }  # fmt: skip
    return {**dict.fromkeys(RECORDED, _recorded), **own}


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
        "approve": ("held",),
        "reject": ("held",),
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


def _history(options: Any) -> int:
    from jobs.config import read_config
    from jobs.history import show

    return show(read_config(options.config, options.overrides), options.limit, options.json)


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

    return examine(options.config, options.overrides, options.address, options.json)


def _submit(options: Any) -> int:
    from jobs.submit import submit

    return submit(options)


def _manifest(options: Any) -> int:
    from jobs.kube import show

    return show(options)


def _jobs(options: Any) -> int:
    from jobs.submitted import show

    return show(options.address, options.json)


def _logs(options: Any) -> int:
    from jobs.submitted import logs

    return logs(options.address, options.job, not options.no_wait, options.json)


def _stop(options: Any) -> int:
    from jobs.submitted import stop

    return stop(options.address, options.job, not options.no_wait, options.json)
