"""`nightshift robustness`: what a model says of spoilt pictures, and how often it says something else than of the clean ones."""

import math
from collections.abc import Sequence
from functools import partial

from jobs.console import counted, say, stage
from jobs.evaluate import check_kind, named_splits
from jobs.plan import present_plan
from jobs.runs import Run, utc_now
from pipeline import layout
from pipeline.documents import Document, encode
from pipeline.errors import HeldError, InputError, UsageError
from pipeline.registry import generation, read_bundle_document, resolve
from pipeline.robustsums import RobustSums, summarize_robustness
from pipeline.selection import live_paths, row_settings, selected
from pipeline.shards import Shard
from pipeline.splits import split_name
from pipeline.tasks import LabelTask, ProbeTask

WORST_SAID = 3


def work(run: Run, split: str | None = None) -> None:
    """Probe the version that labels, on validation images."""
    from pipeline.corruptions import CORRUPTIONS, SEVERITIES

    config, plan = run.config, present_plan(run)
    splits = tuple(split_name(name) for name in (split or "val").split("+"))
    if "test" in splits:
        raise UsageError(
            "the test set is for one look of each version (nightshift evaluate); what robustness shows is acted upon, so it takes val"
        )
    known = {c.name: c for c in CORRUPTIONS}
    if unknown := [name for name in config.robustness.corruptions if name not in known]:
        raise UsageError(f"robustness.corruptions: there is no {unknown[0]!r}; there are {', '.join(known)}")
    names = config.robustness.corruptions or tuple(known)
    version = resolve(run.store, config.model)
    run.note(model=f"{config.model.name}@{version}")
    if config.input.label_column or config.input.labels_column:
        check_kind(
            read_bundle_document(run.store, config.model.name, version), config.input, f"{config.model.name}@{version}"
        )
    source = row_settings(config.input, live_paths(plan.shards))
    shards = selected(plan.shards, config.input)
    named = named_splits(shards, source, config.storage)
    wanted = [shard for shard, found in zip(shards, named, strict=True) if found & {*splits, None}]
    label = config.label
    asked = LabelTask(
        config.store, config.storage, source, label, generation(plan.dataset, config.model.name, version, source, label),
        version, run.id, max(1, math.ceil(label.cpus_per_worker)), config.model.builder,
    )  # fmt: skip
    if len(wanted) > config.robustness.max_images:  # one image of each would be too many
        wanted = sorted(wanted, key=lambda shard: shard.id)[: config.robustness.max_images]
    share = math.ceil(config.robustness.max_images / max(1, len(wanted)))
    sums = _probe(run, wanted, ProbeTask(asked, source, config.split, splits, names, SEVERITIES, share))
    if not sums.num_images:
        raise InputError(
            f"no image that can be read belongs to the split {'+'.join(splits)}; choose another with --split"
        )
    figures = summarize_robustness(sums, [(known[name].challenge, name) for name in names], SEVERITIES)
    document = {
        "model": config.model.name, "version": version, "dataset": plan.dataset, "split": "+".join(splits), "run_id": run.id,
        "at": utc_now(), **figures,
    }  # fmt: skip
    run.store.write(f"{layout.bundle(config.model.name, version)}/robustness.json", encode(document))
    run.note(robustness=document)
    _announce(document)


def _probe(run: Run, shards: Sequence[Shard], task: ProbeTask) -> RobustSums:
    """Add up the shards' sums; HeldError when some cannot be probed."""
    from cluster.dispatch import Failure
    from cluster.labeller import open_prober, over_shards

    sums = RobustSums()
    if not shards:
        return sums
    run.start_cluster()
    with stage("robustness", None) as progress:
        for shard, outcome in over_shards(shards, partial(open_prober, task), run.config.label):
            if isinstance(outcome, Failure):
                raise HeldError(f"shard {shard.id} cannot be probed: {outcome.error}; the same command tries again")
            progress.advance(outcome.num_images)
            sums += outcome
    run.stage("robustness", progress.seconds, sums.num_images)
    return sums


def _announce(document: Document) -> None:
    clean, images = document["clean_error"], counted(document["num_images"])
    if clean is None:
        say(f"{images} of the split {document['split']}, none with a label: only flips can be counted")
    else:
        low, high = document["clean_interval95"]
        say(
            f"{images} of the split {document['split']}: clean error {clean:.1%} ({low:.1%} to {high:.1%} with 95 % confidence)"
        )
    worst = sorted(document["corruptions"], key=lambda row: -row["mean_flips"])[:WORST_SAID]
    for row in worst:
        error = f"error {row['mean_error']:.1%}, " if clean is not None else ""
        say(
            f"  {row['name']} ({row['challenge']}): {error}another label than of the clean picture {row['mean_flips']:.1%}"
        )
    say(
        "background clutter and variety within a class cannot be made from pictures: evaluate.slices shows them, by a column that says so"
    )
