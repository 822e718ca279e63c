"""Make the Markdown tables of RESULTS.md, and docs/benchmark.png, from the log of labelling.py and costs.py.

    .venv-bench/bin/python benchmarks/table.py [--log build/bench.jsonl] [--plot docs/benchmark.png]

Ratios are taken between lines of one session and one run, and their median is compared with the target; all else is the
median over runs, whatever the session. What limits a row is said from what was measured beside it.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from records import DEFAULT_LOG, OURS, Record, pairs, read, selected

PEERS = ("ray_data_docs", "ray_data_tuned", "daft_docs")
TARGETS = {
    "mobilenet_v2": {"ray_data_docs": 12.0, "ray_data_tuned": 4.0, "daft_docs": 7.0, "limit": 0.90},
    "resnet18": {"ray_data_docs": 6.0, "ray_data_tuned": 2.3, "daft_docs": 3.0, "limit": 0.95},
}
# Of all cores, for two seconds before a command: more is somebody else's work.
QUIET = 0.1
TORCH_OF = {"ray_data_docs": "torch_fp32", "ray_data_tuned": "torch_bf16", "daft_docs": "torch_fp32"}
NAMES = {"cold": "nightshift, first night"}
STAGES = {"engine": "the engine", "decode": "waiting for decoded images", "storage": "reading", "write": "writing"}


def tables(records: list[Record], images: int | None = None) -> str:
    """Return all tables that the log has lines for; `images` defaults to the most that a run has labelled."""
    runs = [record for record in records if record.get("run") and record["tool"] in (OURS, *PEERS)]
    images = images or max((record["images"] for record in runs), default=0)
    parts = [_head(records, images), _ratios(runs, images), _rows(records, runs, images), _limits(records, images)]
    return "\n\n".join(part for part in [*parts, _costs(records)] if part)


def _head(records: list[Record], images: int) -> str:
    def said(key: str) -> str:
        return "; ".join(dict.fromkeys(str(record[key]) for record in records if record.get(key)))

    days = sorted({record["at"][:10] for record in records})
    dates = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "nothing measured"
    looked = [record["busy_before"] for record in records if record.get("busy_before") is not None]
    busy = sum(share > QUIET for share in looked)
    noise = f" {busy} of {len(looked)} commands began on a machine that was more than {QUIET:.0%} busy." if busy else ""
    return f"{dates}, {said('machine')}; commit {said('commit')}; {images:,} photos.{noise}"


def _ratios(runs: list[Record], images: int) -> str:
    rows = []
    for model in _models(runs):
        for peer in PEERS:
            ratios = [ratio for _, ratio in pairs(runs, model, peer, images)]
            if ratios:
                every = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                rows.append([model, peer, every, *_against(median(ratios), TARGETS.get(model, {}).get(peer))])
    return _markdown(["model", "against", "ratio of each run", "median", "target", ""], rows)


def _rows(records: list[Record], runs: list[Record], images: int) -> str:
    rows = []
    for model in _models(runs):
        for tool in (OURS, "cold", *PEERS):
            found = selected(records, model=model, tool=tool, images=images)
            if found:
                first = _median(found, "first_commit_s")
                rows.append([
                    model, NAMES.get(tool, tool), f"{_median(found, 'seconds'):.1f} ({len(found)})",
                    f"{_median(found, 'images_per_s'):.1f}",
                    f"{_median(found, 'images_per_s_per_core'):.1f}", f"{first:.1f}" if first is not None else "-",
                    f"{_median(found, 'busy'):.0%}", why(found, selected(records, tool="limits", model=model)),
                ])  # fmt: skip
    head = [
        "model",
        "tool",
        "whole process s (runs)",
        "images/s",
        "per core",
        "first shard s",
        "cores busy",
        "limited by",
    ]
    return _markdown(head, rows)


def why(found: list[Record], limits: list[Record]) -> str:
    """Say in words what limits a tool, from its lines and from what the machine can do at most."""
    return _why_ours(found) if found[0]["tool"] in (OURS, "cold") else _why_peer(found, limits)


def _why_ours(found: list[Record]) -> str:
    total: dict[str, float] = {}
    for record in found:
        for stage, seconds in record["stages_s"].items():
            total[stage] = total.get(stage, 0) + seconds
    shares = sorted(((value / sum(total.values()), stage) for stage, value in total.items()), reverse=True)
    spent = ", ".join(f"{STAGES.get(stage, stage)} {share:.0%}" for share, stage in shares if share >= 0.005)
    start = _median(found, "first_commit_s")
    end = median(record["seconds"] - record["last_commit_s"] for record in found)
    return f"labellers: {spent}; start until the first shard {start:.1f} s, end after the last {end:.1f} s"


def _why_peer(found: list[Record], limits: list[Record]) -> str:
    rate, busy = median(record["said"]["images_per_s"] for record in found), _median(found, "busy")
    start = median(record["seconds"] - record["said"]["seconds"] for record in found)
    said = f"{rate:.1f} images/s inside the job; start and end {start:.1f} s"
    kind = TORCH_OF[found[0]["tool"]]
    limits = [record for record in limits if kind in record]
    if not limits:
        return said
    alone = median(record[kind] / record["cores"] for record in limits)
    name = kind.replace("_", " ")
    bare = f"{name} alone does {alone:.1f} on one core"
    if rate >= 0.7 * alone:
        return f"its forward pass ({bare}); {said}"
    if busy >= 0.8:
        return f"work around the forward pass ({bare}): decoding, copying, moving pixels; {said}"
    return f"waiting: the cores are idle {1 - busy:.0%} of the time ({bare}); {said}"


def _limits(records: list[Record], images: int) -> str:
    rows = []
    for model in _models(records):
        for session in dict.fromkeys(record["session"] for record in selected(records, tool="limits", model=model)):
            limit = selected(records, tool="limits", model=model, session=session)[-1]
            ours = selected(records, tool=OURS, model=model, session=session, images=images)
            rates = [record["steady_images_per_s"] for record in ours if record["steady_images_per_s"]]
            if rates:
                rule = "slower of both" if limit["gpu"] else "1/(1/F + 1/D)"
                share = _against(median(rates) / limit["limit"], TARGETS.get(model, {}).get("limit"))
                every = ", ".join(f"{rate:.0f}" for rate in rates)
                bare = [f"{limit[key]:.0f}" for key in ("forward", "decode", "limit")]
                rows.append([model, every, *bare, rule, *share])
    head = [
        "model",
        "steady images/s",
        "forward alone (F)",
        "decode alone (D)",
        "limit",
        "which is",
        "of it",
        "target",
        "",
    ]
    return _markdown(head, rows)


def _costs(records: list[Record]) -> str:
    rows = []
    if empty := selected(records, tool="empty_shard"):
        ms = median(record["ms"] for record in empty)
        rows.append(["an empty shard through dispatch and ledger", f"{ms:.1f} ms", "<= 10 ms"])
    watched = selected(records, tool="memory")
    for images in sorted({record["images"] for record in watched}):
        peaks = selected(watched, images=images)[-1]["peaks_mb"]
        said = ", ".join(f"{kind} {peak:.0f} MB" for kind, peak in sorted(peaks.items()))
        rows.append([f"peak memory, {images:,} images", said, "flat"])
    staffed = selected(records, tool="labellers")
    images = max((record["images"] for record in staffed), default=0)
    for cpus, words in ((1, "one CPU"), (None, "the whole machine")):
        one = selected(staffed, images=images, asked=[1, cpus])
        two = selected(staffed, images=images, asked=[2, None])
        for key, what in (("steady_images_per_s", "steady"), ("images_per_s", "whole process")):
            before, after = _median(one, key), _median(two, key)
            if before and after:
                figures = f"{before:.0f} -> {after:.0f} images/s: {after / before:.2f}"
                rows.append(
                    [f"1 labeller on {words} -> 2 on two, {what}", figures, ">= 1.9" if what == "steady" else ""]
                )
    return _markdown(["what", "measured", "target"], rows)


def _models(records: Iterable[Record]) -> list[str]:
    return sorted({record["model"] for record in records if record.get("model")})


def _median(records: list[Record], key: str) -> float | None:
    values = [record[key] for record in records if record.get(key) is not None]
    return median(values) if values else None


def _against(value: float, target: float | None) -> list[str]:
    if target is None:
        return [f"{value:.2f}", "-", ""]
    return [f"{value:.2f}", f">= {target:g}", "reached" if value >= target else "missed"]


def _markdown(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) if rows else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path, default=DEFAULT_LOG)
    parser.add_argument("--images", type=int, help="only runs of so many photos (default: the most that there are)")
    parser.add_argument("--plot", type=Path, help="also draw the seconds of every tool and model")
    options = parser.parse_args()
    records = read(options.log)
    print(tables(records, options.images))
    if options.plot:
        from plot import draw

        draw(records, options.plot, options.images)


if __name__ == "__main__":
    main()
