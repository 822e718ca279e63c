"""Many faults of all kinds on a standing cluster, each followed by a comparison, row by row, with a clean run.

`make chaos SEEDS=n` runs n of them and prints a table; NIGHTSHIFT_CHAOS_TABLE names a file for the same as JSON lines.
"""

import json
import os
import random
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Night, published, write_config
from faultproxy import FaultProxy
from faults import FAULTS, Impossible, binary, damaged
from test_chaos import Job, wait_until
from test_nodes import Ground

from pipeline import layout
from pipeline.documents import advance
from pipeline.publication import read_view
from pipeline.registry import resolve
from pipeline.settings import ModelSettings
from pipeline.storage import open_storage
from pipeline.tables import read_table

SEEDS = int(os.environ.get("NIGHTSHIFT_CHAOS_SEEDS", "4"))
NUM_FILES, SHARDS_PER_FILE, IMAGES_PER_SHARD = 8, 8, 3
FILES_IN_BUCKET = 3  # a request there takes its time
NAMES = list(FAULTS)


class Stage:
    """A small input, a store with a model, and runs of the real command on a standing cluster: what a fault happens to."""

    num_files, num_shards, images_per_shard = NUM_FILES, NUM_FILES * SHARDS_PER_FILE, IMAGES_PER_SHARD

    def __init__(self, folder, png, seed, ground, prepared=None, s3=None, nightshift=None):
        self.folder, self.ground, self.turn = folder, ground, seed // len(NAMES)
        self.chance, self.jobs, self._rows = random.Random(seed), [], None
        self._prepared, self._s3, self._nightshift = prepared, s3, nightshift
        self.night = Night(folder, png)
        self.version = prepared.version if prepared else None
        source = {"shard_images": IMAGES_PER_SHARD}
        self.config = self.night.config(
            input=source, cluster={"address": ground.address}, label={"max_workers": 1, "overlap": "work"}
        )
        self._storage = self.night.store
        for number in range(NUM_FILES):
            self.write(number)
        self.furnish()

    def furnish(self):
        """Put what all scenes have into the store: the model, and what is known about engines on this machine."""
        for name in ("models", "cache") if self._prepared else ():
            shutil.copytree(self._prepared.folder / "store" / name, self.folder / "store" / name, dirs_exist_ok=True)

    def file(self, number):
        return self.night.data / f"{number}.parquet"

    def write(self, number, changed=False, garbage=None):
        """Write an input file: as it was in the beginning, or all of it changed, or with one row that is no picture."""
        count = SHARDS_PER_FILE * IMAGES_PER_SHARD
        ids = [number * 1000 + (500 if changed else 0) + row for row in range(count)]
        pictures = [self.night.png(image_id) for image_id in ids]
        if garbage:
            row = self.chance.randrange(count)
            pictures[row] = damaged(garbage, pictures[row])
        self.night.write(f"{number}.parquet", ids, self.images_per_shard, image=binary(pictures))

    def cut_by_file(self, num_files):
        """Have so many input files, each of them one shard and one row group."""
        self.num_files = self.num_shards = num_files
        self.images_per_shard = SHARDS_PER_FILE * IMAGES_PER_SHARD
        source = self.config.input.model_copy(update={"shard_images": self.images_per_shard})
        self.config = self.config.model_copy(update={"input": source})
        for number in range(num_files):
            self.write(number)

    def start(self, run_id, *options, command="nightly"):
        job = Job(write_config(self.folder / "night.yaml", self.config), run_id, *options, command=command)
        self.jobs.append(job)
        return job

    def finish(self, run_id="again"):
        """Run the command again in this process, without Ray, as who finds a night undone does; return its exit code."""
        return self._nightshift(self.config, "nightly", "--run-id", run_id).code

    def ends_well(self, job):
        assert job.wait() == 0, job.last_words

    def committed(self):
        return len(list((self.folder / "store" / "ledger").rglob("*.json")))

    def record(self, run_id):
        return json.loads(self._storage.read(f"runs/{run_id}/run.json"))

    def promote_another(self, builder="lab_cnn", size_px=8):
        """Seal another model and make it the production version, which is returned."""
        other = self.night.seal(builder, seed=1, size_px=size_px)
        advance(self.night.store, layout.production("tiny"), {"version": other, "at": "now", "reason": "chaos"}, 1)
        assert resolve(self.night.store, ModelSettings(name="tiny")) == other
        return other

    def set_label(self, **settings):
        """Change how the runs that start from now on label."""
        label = self.config.label.model_copy(update=settings)
        self.config = self.config.model_copy(update={"label": label})

    @contextmanager
    def behind(self, share, kinds=("error",)):
        """Move some of the input and the store into a bucket that is reached through a misbehaving proxy."""
        url, direct = self._s3
        for number in range(FILES_IN_BUCKET, NUM_FILES):
            self.file(number).unlink()
        for name in ("data", "store"):
            bucket, folder = open_storage(f"{url}/{name}", direct), self.folder / name
            for path in folder.rglob("*"):
                if path.is_file():
                    bucket.write(str(path.relative_to(folder)), path.read_bytes())
        with FaultProxy(direct.endpoint, share, self.chance.randrange(1000), kinds) as proxy:
            through = direct.model_copy(update={"endpoint": proxy.url, "timeout_s": 1.0, "max_retries": 30})
            source = self.config.input.model_copy(update={"url": f"{url}/data"})
            self.config = self.config.model_copy(update={"store": f"{url}/store", "storage": through, "input": source})
            self._storage = open_storage(f"{url}/store", direct)
            yield proxy

    def keep_rows(self):
        """Read the rows now: the store will be gone."""
        self._rows = self._read()

    def rows(self):
        return self._rows or self._read()

    def _read(self):
        return rows_of(self._storage)

    def close(self):
        for job in self.jobs:
            job.close()
        # Labellers of a driver that was killed end when the cluster has noticed.
        wait_until(lambda: not self.ground.all_labellers(), "the end of the labellers")


def rows_of(storage):
    """Return the (id, label, content hash) of the view and the (id, reason) of what it quarantined; the books must balance."""
    view = read_view(storage, "data")
    labelled = published(storage, "data")
    tables = [read_table(storage, path, ("image_id", "reason")) for path in view.document["quarantine_files"]]
    bad = sorted((row["image_id"], row["reason"]) for table in tables for row in table.to_pylist())
    counts = view.counts
    assert (counts.images_in, counts.labelled, counts.quarantined) == (
        len(labelled) + len(bad),
        len(labelled),
        len(bad),
    )
    return labelled, bad


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """A standing cluster for all faults: a head that does no work, and a node of two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-alone-0123456789",
            "RAY_USAGE_STATS_ENABLED": "0", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        }.items():  # fmt: skip
            patch.setenv(key, value)
        made = Ground(tmp_path_factory.mktemp("cluster") / "cluster.log")
        made.add(2)
        yield made
        made.close()


class Table:
    """What happened, fault by fault: as lines of JSON at once, as a table at the end."""

    def __init__(self, path):
        self._path, self._rows = path, []
        if path:
            path.write_text("")

    def add(self, row):
        self._rows.append(row)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    def __str__(self):
        lines = [
            f"{row['seed']:>4}  {row['fault']:<39} {row['seconds']:>6.1f} s  {row['images']:>4} rows  "
            f"{'equal' if row['rows_equal'] else 'NOT EQUAL':<9}  {row['what']}"
            for row in self._rows
        ]
        equal, kinds = sum(row["rows_equal"] for row in self._rows), len({row["fault"] for row in self._rows})
        return "\n".join(
            [*lines, f"{len(lines)} faults of {kinds} kinds; {equal} times the rows are those of a clean run"]
        )


@pytest.fixture(scope="module")
def table(request):
    """The table of all faults; printed at the end, captured or not."""
    path = os.environ.get("NIGHTSHIFT_CHAOS_TABLE")
    made = Table(Path(path) if path else None)
    yield made
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{made}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, ground, png):
    """A store with a model that has labelled once, through the command: its engine is chosen, its rows are those expected."""
    stage = Stage(tmp_path_factory.mktemp("prepared"), png, 0, ground)
    stage.version = stage.night.seal("lab_cnn")
    try:
        stage.ends_well(stage.start("clean"))
    finally:
        stage.close()
    shutil.rmtree(stage.folder / "store" / "cache" / "identities", ignore_errors=True)
    return stage


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"{seed}-{NAMES[seed % len(NAMES)]}")
def test_rows_after_any_fault_are_those_of_a_clean_run(
    tmp_path, png, ground, prepared, table, s3, nightshift, local_ray, seed
):
    name = NAMES[seed % len(NAMES)]
    stage = Stage(tmp_path, png, seed, ground, prepared, s3, nightshift)
    row = {"seed": seed, "fault": name, "what": "failed", "images": 0, "rows_equal": False}
    started = time.monotonic()
    try:
        row["what"] = FAULTS[name](stage)
        found = stage.rows()
        row["images"] = len(found[0]) + len(found[1])
        expected = clean_rows(tmp_path / "clean", png, stage, prepared)
        row["rows_equal"] = found == expected
        assert found == expected
    except Impossible as error:
        row["what"] = f"not done: {error}"
        pytest.skip(str(error))
    finally:
        table.add(row | {"seconds": round(time.monotonic() - started, 1)})
        stage.close()


def clean_rows(folder, png, stage, prepared):
    """Return the rows that the input, as it is now, has in a store that starts with the same model and nothing else."""
    night, home = Night(folder, png), stage if stage.version != prepared.version else prepared
    shutil.copytree(home.folder / "store" / "models", folder / "store" / "models")
    source = {"url": str(stage.night.data), "shard_images": IMAGES_PER_SHARD}
    night.whole(night.config(input=source, label={"exact": stage.config.label.exact}), stage.version)
    return rows_of(night.store)
