"""`nightshift status`: what the store holds - plans, models, generations, the view, the last runs."""

import json
from collections import Counter
from typing import Any

from jobs.config import Config
from jobs.console import counted
from jobs.runs import read_runs
from pipeline.plans import read_plan
from pipeline.publication import read_view
from pipeline.refusals import printable
from pipeline.registry import production, read_beside, versions
from pipeline.storage import Storage

RUNS_SHOWN = 8


def show(config: Config, as_json: bool) -> int:
    """Print the state of the config's data set and model."""
    state = _state(config, config.open_store())
    if as_json:
        print(json.dumps(state, ensure_ascii=False))
        return 0
    for title, lines in _words(state).items():
        print(title)
        for line in lines or ["none yet"]:
            print(f"  {line}")
    return 0


def _state(config: Config, store: Storage) -> dict[str, Any]:
    plan, view = read_plan(store, config.dataset), read_view(store, config.dataset)
    name = config.model.name
    ledger = Counter(
        entry.path.split("/")[2] for entry in store.list(f"ledger/{config.dataset}") if entry.path.endswith(".json")
    )
    return {
        "store": printable(store.url),
        "dataset": config.dataset,
        "plan": plan and {
            "n": plan.n, "images": plan.num_images, "shards": len(plan.shards),
            "ignored_files": plan.ignored_files, "failed_files": list(plan.failed_files),
        },
        "models": [
            {"version": version, "evaluation": _figures(store, name, version)} for version in versions(store, name)
        ],
        "production": production(store, name),
        "generations": [{"name": generation, "committed_shards": count} for generation, count in sorted(ledger.items())],
        "view": view and {
            **{key: view.document.get(key) for key in ("n", "generation", "counts", "published_at", "plan", "date")},
            "generations": dict(Counter(view.generations.values())),
        },
        "runs": [run for run in read_runs(store) if run["dataset"] == config.dataset][-RUNS_SHOWN:],
    }  # fmt: skip


def _figures(store: Storage, name: str, version: str) -> dict[str, Any] | None:
    evaluation = read_beside(store, name, version, "evaluation.json")
    wanted = ("dataset", "split", "num_images", "top1", "map")
    return {key: evaluation[key] for key in wanted if key in evaluation} if evaluation else None


def _words(state: dict[str, Any]) -> dict[str, list[str]]:
    plan, view = state["plan"], state["view"]
    return {
        f"store {state['store']}, data set {state['dataset']}": [
            f"plan {plan['n']}: {counted(plan['images'])} in {counted(plan['shards'], 'shard')}; "
            f"ignored: {counted(plan['ignored_files'], 'other file')}; "
            f"cannot be read: {counted(len(plan['failed_files']), 'file')}"
        ] if plan else [],
        "models": [_model(model, state["production"]) for model in state["models"]],
        "generations": [f"{g['name']}: {counted(g['committed_shards'], 'committed shard')}" for g in state["generations"]],
        "current view": [
            f"{view['n']}, {view['published_at']}: {view['counts']['labelled']:,} labels of {_generations(view)}, plan {view['plan']}"
        ] if view else [],
        "last runs": [
            f"{run['run_id']}: {run['labelled']:,} labelled, {run['quarantined']:,} quarantined, {run['skipped']:,} done before, "
            + (f"{run['remaining']:,} left, " if run.get("remaining") else "")
            + f"{run['seconds']:.0f} s; {run['exit_code']} ({run['outcome']})"
            for run in state["runs"]
        ],
    }  # fmt: skip


def _generations(view: dict[str, Any]) -> str:
    """Name the view's own generation, and how many shards come from which where there are others."""
    counts = view["generations"]
    if set(counts) <= {view["generation"]}:
        return str(view["generation"])
    return " and ".join(f"{name} ({counted(count, 'shard')})" for name, count in counts.items())


def _model(model: dict[str, Any], chosen: str | None) -> str:
    e = model["evaluation"]
    judged = f"{_figure(e)} on {counted(e['num_images'])} of {e['dataset']} {e['split']}" if e else "not evaluated"
    return f"{model['version']}{' (production)' if model['version'] == chosen else ''}: {judged}"


def _figure(evaluation: dict[str, Any]) -> str:
    precision = evaluation.get("map")
    return f"top-1 {evaluation['top1']:.1%}" if precision is None else f"mean average precision {precision:.1%}"
