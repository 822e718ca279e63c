"""A folder with photos and a store, and one labelling of all of them: by nightshift, or by a peer; every one a line of the log."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from photos import make_photos
from processes import Finished, timed
from records import OURS, ROOT, Log, Record

SHARED = ROOT.parent / "shared"
CLASSES = SHARED / "data" / "weights" / "imagenet_classes.json"
PRETRAINED = SHARED / "data" / "weights" / "mobilenet_v2_imagenet.safetensors"


class Bench:
    """Photos, and a store that a kept folder keeps with all that is in its cache."""

    def __init__(self, folder: Path, log: Log, num_images: int) -> None:
        self.folder, self.num_images, self.log = folder, num_images, log
        self.photos, self.store = folder / f"photos-{num_images}", folder / "store"
        if not self.photos.exists():
            print(f"making {num_images:,} photos of flowers5", flush=True)
            unfinished = folder / f"photos-{num_images}-{os.getpid()}"
            make_photos(SHARED / "data" / "flowers5", unfinished, num_images)
            unfinished.rename(self.photos)

    def adopt(self, model: str) -> bool:
        """Put a model into the store, which is part of setting up and not of a night; say whether it was not there."""
        if (self.store / "models" / model / "production").exists():
            return False
        self._nightshift("train", model, f"{model}-setup")
        return True

    def ready(self, model: str) -> None:
        """See that the store has the model and its choice of engine: label once, unless an earlier call has done so."""
        done = self.folder / f"{model}.ready"
        if not done.exists():
            tool = "cold" if self.adopt(model) else "warm-up"
            self.ours(model, f"{model}-{tool}", tool=tool)
            done.touch()

    def ours(
        self, model: str, night: str, *, watch: bool = False, labellers: int | None = None, cpus: int | None = None,
        tool: str = OURS, **values: Any,
    ) -> Record:  # fmt: skip
        """Label all photos as a data set that the store has never seen, and log it.

        `labellers` bounds them; `cpus` takes the other cores away from the whole process and all that it starts.
        """
        extra = [] if labellers is None else ["--set", f"label.max_workers={labellers}"]
        extra += [] if cpus is None else ["--set", f"cluster.num_cpus={cpus}"]
        before = [] if cpus is None else ["taskset", "--cpu-list", f"0-{cpus - 1}"]
        name = f"{night}-{self.log.session}"
        done = self._nightshift("nightly", model, name, *extra, before=before, watch=watch)
        record = json.loads(done.out.splitlines()[-1])
        if record["labelled"] != self.num_images:
            sys.exit(f"nightshift labelled {record['labelled']} of {self.num_images} images:\n{done.err[-2000:]}")
        cores = min(os.cpu_count() or 1, cpus or os.cpu_count() or 1)
        return self.log.write(
            tool=tool, model=model, images=self.num_images, **values, **_wall(done, self.num_images, cores),
            labellers=labellers or cores, cpus=cores, stages=record["stages"],
            **told_by_ledger(self.store / "ledger" / name, done.began),
            **({"peaks_mb": done.peaks_mb} if watch else {}),
        )  # fmt: skip

    def peer(self, name: str, model: str, run: int) -> Record:
        """Run one peer on the same photos and weights, and log it."""
        weights = str(PRETRAINED) if model == "mobilenet_v2" else "-"
        output = self.folder / f"{name}-{model}-{self.log.session}-{run}"
        script = SHARED / "peers" / f"{name}.py"
        done = timed([sys.executable, str(script), model, weights, str(self.photos), str(output)], self.folder)
        if done.code:
            sys.exit(f"{name} failed:\n{done.err[-2000:]}")
        said = json.loads(done.out.splitlines()[-1])
        if said["images"] != self.num_images:
            sys.exit(f"{name} labelled {said['images']} of {self.num_images} images")
        return self.log.write(
            tool=name, model=model, images=self.num_images, run=run,
            **_wall(done, self.num_images, os.cpu_count() or 1), said=said, agreement=self._agreement(output, model),
        )  # fmt: skip

    def _agreement(self, output: Path, model: str) -> float | None:
        """Return the share of photos to which a peer's class is also ours, of the last night that labelled all with this model."""
        import pyarrow.parquet as pq

        nights = (self.store / "labels").glob(f"{model}-*")
        for night in sorted(nights, key=lambda path: path.stat().st_mtime, reverse=True):
            ours = pq.read_table(night, columns=["image_id", "class_index"]).to_pydict()
            known = dict(
                zip(ours["image_id"], ours["class_index"], strict=True)
            )  # small files lie there joined as well
            if len(known) == self.num_images:
                theirs = pq.read_table(output, columns=["image_id", "label"]).to_pydict()
                same = sum(known[key] == value for key, value in zip(theirs["image_id"], theirs["label"], strict=True))
                return round(same / self.num_images, 4)
        return None

    def _nightshift(
        self, command: str, model: str, night: str, *arguments: str, before: list[str] | None = None,
        watch: bool = False,
    ) -> Finished:  # fmt: skip
        config = self.folder / f"{night}.yaml"
        config.write_text(yaml.safe_dump(self._config(model, night)))
        program = str(Path(sys.executable).parent / "nightshift")
        line = [*(before or []), program, command, str(config), "--json", *arguments]
        done = timed(line, self.folder, watch)
        if done.code:
            sys.exit(f"{' '.join(line)} ended with {done.code}:\n{done.err[-3000:]}")
        return done

    def _config(self, model: str, night: str) -> dict[str, Any]:
        weights = str(self._weights(model))
        return {
            "store": str(self.store),
            "input": {"url": str(self.photos), "name": night, "image_column": "image", "id_column": "image_id"},
            "model": {"name": model, "builder": model, "weights": weights, "classes": str(CLASSES)},
            "train": {"mode": "none"},
        }

    def _weights(self, model: str) -> Path:
        """Return real weights, or those that the peers make from the seed 0."""
        if model == "mobilenet_v2":
            return PRETRAINED
        path = self.folder / f"{model}.safetensors"
        if not path.exists():
            import torch
            import torchvision
            from safetensors.torch import save_file

            torch.manual_seed(0)
            save_file(getattr(torchvision.models, model)().state_dict(), path)
        return path


def _wall(done: Finished, num_images: int, cores: int) -> dict[str, Any]:
    rate = num_images / done.seconds
    return {
        "seconds": round(done.seconds, 2), "images_per_s": round(rate, 1), "images_per_s_per_core": round(rate / cores, 1),
        "busy": done.busy, "busy_before": done.busy_before,
    }  # fmt: skip


def told_by_ledger(folder: Path, began: float) -> dict[str, Any]:
    """Return what the ledger of a night tells: when shards were committed, and what the labellers spent their time on.

    `commits` are [seconds since the command, images in the shard], in order; `stages_s` sums over shards: reading, waiting
    for decoded images, the engine, writing.
    """
    paths = sorted(folder.rglob("*.json"), key=lambda path: path.stat().st_mtime)
    entries = [json.loads(path.read_text()) for path in paths]
    commits = [
        [round(path.stat().st_mtime - began, 2), sum(row[0] for row in entry["segments"].values())]
        for path, entry in zip(paths, entries, strict=True)
    ]
    stages: dict[str, float] = {}
    for entry in entries:
        for stage, seconds in entry["seconds"].items():
            stages[stage] = round(stages.get(stage, 0) + seconds, 2)
    used = entries[-1]["used"]
    return {
        "first_commit_s": commits[0][0], "last_commit_s": commits[-1][0], "steady_images_per_s": steady(commits),
        "stages_s": stages, "engine": [used.get("engine"), used.get("precision")], "commits": commits,
    }  # fmt: skip


def steady(commits: list[list[float]]) -> float | None:
    """Return images/s in the middle of a night, without the first and the last tenth of its commits; None for one shard.

    When the first shards are committed others are half done, and at the end some labellers have nothing to do any more.
    """
    skipped = len(commits) // 10
    middle = commits[skipped : len(commits) - skipped]
    took = middle[-1][0] - middle[0][0]
    return round(sum(images for _, images in middle[1:]) / took, 1) if took > 0 else None
