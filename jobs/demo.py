"""`nightshift demo`: one whole night on the digits that scikit-learn carries."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from jobs.config import read_config
from jobs.console import say
from jobs.evaluate import evaluate
from jobs.label import label_plan
from jobs.plan import make_plan
from jobs.report import announce_report
from jobs.runs import Run, execute
from jobs.train import train_model
from pipeline.errors import UsageError
from pipeline.page import speak
from pipeline.publication import read_view

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"
MARK = "nightshift-demo"  # --fresh removes only a folder that holds it


def run_demo(folder: str, fresh: bool, overrides: Sequence[str], run_id: str | None, as_json: bool) -> int:
    """Plan, train, evaluate, label and report below `folder`; return the exit code."""
    root = Path(folder).absolute()
    if fresh:
        _remove(root)
    again = (root / "store").is_dir()
    places = [f"store={root / 'store'}", f"input.url={root / 'digits'}"]
    config = read_config(str(CONFIG), [*places, *overrides])
    root.mkdir(parents=True, exist_ok=True)
    (root / MARK).touch()
    if again:
        say("this demo ran here before, so there is little to do; --fresh starts over")
    run = Run("demo", config, run_id)
    code = execute(run, lambda current: _night(current, root))
    _show(run)
    announce_report(config, run.store, run.record)
    if as_json:
        print(json.dumps(run.record, ensure_ascii=False))
    return code


def _night(run: Run, root: Path) -> None:
    from pipeline.digits import write_digits

    if write_digits(root / "digits"):
        say(f"wrote the digits to {root / 'digits'}")
    plan, _ = make_plan(run)
    version = train_model(run)
    evaluate(run, None, version)
    label_plan(run, plan, version)


def _show(run: Run) -> None:
    """Show a few predictions the way people read them, and what was quarantined."""
    from pipeline.gallery import quarantined, sample_predictions

    view = read_view(run.store, run.config.dataset)
    if view is None:
        return
    say("\nsome predictions, the hardest first:")
    for image_id, top in sample_predictions(run.store, view.files, 5):
        say(f"  {image_id}: {speak(top)}")
    say("quarantined:")
    for row in quarantined(run.store, view.document["quarantine_files"], 10):
        say(f"  {row['image_id']}: {row['reason']} ({row['message']})")


def _remove(root: Path) -> None:
    if root.exists() and not (root / MARK).exists():
        raise UsageError(f"--fresh: {root} holds no earlier demo, so it is left alone; choose another --folder")
    shutil.rmtree(root, ignore_errors=True)
