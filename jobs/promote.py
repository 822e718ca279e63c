"""`nightshift promote`: make a version production if it deserves it."""

import pyarrow as pa

from jobs.console import counted, say
from jobs.evaluate import evaluate
from jobs.runs import Run, utc_now
from pipeline.documents import Document
from pipeline.errors import HeldError, UsageError
from pipeline.judged import KEY
from pipeline.promotion import Comparison, compare, objections, point_to, pointer
from pipeline.registry import newest_training, read_bundle_document, resolve
from pipeline.tables import read_table


def work(run: Run) -> None:
    """Judge a version beside production, on the same images, and move the pointer or say why not."""
    model = run.config.model
    number, current = pointer(run.store, model.name)
    version = model.version or newest_training(run.store, model.name)
    if version is None:
        raise UsageError(f"no version of {model.name!r} was trained here; name one with --set model.version=VERSION")
    resolve(run.store, model.model_copy(update={"version": version}))
    run.note(model=f"{model.name}@{version}")
    if version == current["version"]:
        say(f"{model.name}@{version} is production already; another one: --set model.version=VERSION")
        return
    if current.get("instead_of") == version and model.version is None:
        raise HeldError(
            f"{model.name}@{version} was taken back by a rollback on {current['at']}, so it is not promoted by itself again; if it "
            f"deserves that now: --set model.version={version}"
        )
    _refuse_other_kind(run, version, current["version"])
    its, mine = (evaluate(run, None, chosen, known=True) for chosen in (current["version"], version))
    comparison = compare(*(_rows(run, document) for document in (mine, its)))
    _say(mine, its, comparison)
    reasons = list(objections(mine, comparison, run.config.promote))
    if failed := run.record["failed_files"]:
        reasons.append(f"{counted(len(failed), 'input file')} cannot be read, so not all images were compared")
    run.note(promotion={"from": its["version"], "to": version, **_counts(comparison), "objections": reasons})
    if reasons:
        raise HeldError(
            f"production stays {model.name}@{current['version']}, {version} is not promoted: {'; '.join(reasons)}"
        )
    reason = f"better on {comparison.better} of {comparison.num_images} images, worse on {comparison.worse}"
    document = {"version": version, "at": utc_now(), "reason": reason, "run_id": run.id, "evaluation": mine["rows"]}
    point_to(run.store, model.name, document, number)
    say(f"{model.name}@{version} is production: it labels from now on; nightshift rollback CONFIG goes back")


def _rows(run: Run, document: Document) -> pa.Table:
    columns = [*KEY, "errors", *(["unknown"] if document.get("task") == "multi_label" else [])]
    return read_table(run.store, document["rows"], columns)


def _refuse_other_kind(run: Run, version: str, current: str) -> None:
    kinds = {"thresholds" in read_bundle_document(run.store, run.config.model.name, v) for v in (version, current)}
    if len(kinds) > 1:
        raise UsageError(
            f"{version} and production ({current}) cannot be compared: one answers with one label for an image, the other with any "
            "number; give the new kind a name of its own (model.name)"
        )


def _counts(comparison: Comparison) -> Document:
    counts = {"num_images": comparison.num_images, "better": comparison.better, "worse": comparison.worse}
    return {**counts, "p": comparison.p}


def _say(mine: Document, its: Document, comparison: Comparison) -> None:
    say(
        f"{mine['version']} has {mine['top1']:.1%} right, production ({its['version']}) {its['top1']:.1%}; of the same "
        f"{counted(comparison.num_images)} it is better on {comparison.better:,} and worse on {comparison.worse:,} "
        f"(by chance alone: {comparison.p:.2g})"
    )
