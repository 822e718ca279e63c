"""The picture of the benchmark: seconds of the whole process, a bar per tool and model, from zero; dots are the runs."""

from pathlib import Path
from statistics import median

from records import OURS, Record, selected

TOOLS = {
    OURS: "nightshift",
    "ray_data_tuned": "Ray Data, tuned",
    "daft_docs": "Daft, as documented",
    "ray_data_docs": "Ray Data, as documented",
}
OUR_COLOUR, THEIR_COLOUR, INK = "#1f6f8b", "#b8bfc6", "#333333"


def bars(records: list[Record], images: int | None = None) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every run by model and tool, of runs with so many photos (default: the most)."""
    runs = [record for record in records if record.get("run") and record["tool"] in TOOLS]
    images = images or max((record["images"] for record in runs), default=0)
    found: dict[str, dict[str, list[float]]] = {}
    for model in sorted({record["model"] for record in runs}):
        seconds = {
            tool: [r["seconds"] for r in selected(runs, model=model, tool=tool, images=images)] for tool in TOOLS
        }
        if any(seconds.values()):
            found[model] = {tool: values for tool, values in seconds.items() if values}
    return found


def draw(records: list[Record], path: Path, images: int | None = None) -> None:
    """Write the picture; nothing when no run was measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = bars(records, images)
    if not found:
        return
    figure, axes = plt.subplots(
        1, len(found), figsize=(5.2 * len(found), 2.9), squeeze=False, layout="constrained", sharey=True
    )
    for axis, (model, tools) in zip(axes[0], found.items(), strict=True):
        for place, tool in enumerate(TOOLS):
            if tool in tools:
                height = median(tools[tool])
                axis.barh(place, height, 0.62, color=OUR_COLOUR if tool == OURS else THEIR_COLOUR)
                axis.plot(tools[tool], [place] * len(tools[tool]), "o", color=INK, markersize=2.5)
                axis.annotate(
                    f"{height:,.0f} s",
                    (max(tools[tool]), place),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    color=INK,
                )
        axis.set_yticks(range(len(TOOLS)), TOOLS.values())
        axis.set_title(model, loc="left", color=INK)
        axis.set_xlim(0, 1.18 * max(max(values) for values in tools.values()))
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False, colors=INK)
    axes[0][0].set_ylim(len(TOOLS) - 0.5, -0.5)
    runs = [record for record in records if record.get("run") and record["tool"] in TOOLS]
    images = images or max(record["images"] for record in runs)
    machines = "; ".join(dict.fromkeys(record["machine"] for record in runs))
    figure.supxlabel(f"seconds for {images:,} photos, whole process (median; dots are runs)\n{machines}", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
