"""Measure a second night: 5 % of the photos are new, 1 % changed, 1 % gone; then check the view row by row with DuckDB.

    .venv/bin/python benchmarks/two_nights.py             # 1,000 loose photos of flowers5, mobilenet_v2

Both nights are `nightshift nightly` as a process of its own, with a Delta table beside the view. While the second one runs, a
reader polls the Delta table. The view is read as plain files (`nightshift labels --json` to DuckDB) and as the Delta table
(deltalake to Arrow to DuckDB), and compared with the folder's files and with what a store that starts empty makes of
them. No time is asserted; wrong rows are exit 1.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import deltalake
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from processes import Finished, timed

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COLUMNS = "image_id, label, class_index, confidence, top_k, width, height, model, content_hash"
# An answer on the fence may fall to either side with the batch that an image comes in: at least so far from it counts.
FENCE = 0.02


class Photos:
    """A folder of loose photos, and how it changes from one night to the next."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        table = pq.read_table(SHARED / "flowers5", columns=["image_id", "image", "label"]).slice(0, count)
        for row in table.to_pylist():
            self._write(f"{row['label']}/{row['image_id']}.jpg", row["image"])
        self._others = pq.read_table(SHARED / "imagenet_sample100", columns=["image_id", "image"]).to_pylist()

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def pass_a_day(self) -> tuple[int, int, int]:
        """Add 5 %, change 1 %, delete 1 %; return how many."""
        names = sorted(self.names())
        new, few = len(names) // 20, len(names) // 100
        if new + few > len(self._others):
            sys.exit(f"{len(names)} photos need {new + few} others, and imagenet_sample100 has {len(self._others)}")
        for name, other in zip(names[:: len(names) // few][:few], self._others[:few], strict=True):
            self._write(name, other["image"])
        for name in names[1 :: len(names) // few][:few]:
            (self.folder / name).unlink()
        for other in self._others[few : few + new]:
            self._write(f"new/{other['image_id']}.jpg", other["image"])
        return new, few, few

    def names(self) -> dict[str, str]:
        """Return the SHA-256 of every photo by the id that it has: its path."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Nights:
    """A store, its config, and the commands over it."""

    def __init__(self, folder: Path, photos: Path, name: str) -> None:
        self.folder, self._config = folder, folder / f"{name}.yaml"
        self.table = str(folder / name / "labels" / "photos")
        document = {
            "store": str(folder / name),
            "input": {"url": str(photos), "name": "photos"},
            "model": {
                "name": "stock",
                "builder": "mobilenet_v2",
                "weights": str(SHARED / "weights" / "mobilenet_v2_imagenet.safetensors"),
                "classes": str(SHARED / "weights" / "imagenet_classes.json"),
            },
            "output": {"table": "delta"},
        }
        self._config.write_text(yaml.safe_dump(document))

    def command(self, verb: str) -> Finished:
        line = [str(Path(sys.executable).parent / "nightshift"), verb, str(self._config), "--json"]
        done = timed(line, self.folder)
        if done.code:
            sys.exit(f"{' '.join(line)} ended with {done.code}:\n{done.err[-3000:]}")
        return done

    def night(self, what: str) -> dict[str, Any]:
        """Do a night, print its figures and return its record."""
        done = self.command("nightly")
        record: dict[str, Any] = json.loads(done.out.splitlines()[-1])
        counts = {key: record[key] for key in ("images_in", "labelled", "quarantined", "skipped")}
        stages = {stage["name"]: stage["seconds"] for stage in record["stages"]}
        print(f"{what:<12} {done.seconds:6.1f} s whole process, stages {stages} s, {counts}", flush=True)
        return record

    def files(self) -> pa.Table:
        """Return the view as DuckDB reads its files."""
        files = json.loads(self.command("labels").out)["files"]
        return duckdb.sql(
            f"select {COLUMNS} from read_parquet({files}, union_by_name=true) order by image_id"
        ).to_arrow_table()

    def delta(self) -> pa.Table:
        """Return the view as DuckDB reads the Delta table, through deltalake and Arrow."""
        base = duckdb.connect()
        base.register("delta", pa.table(deltalake.DeltaTable(self.table).scan()))
        return base.sql(f"select {COLUMNS} from delta order by image_id").to_arrow_table()


class Reader:
    """Polls a Delta table in a thread of its own: what it saw, as sets of (id, content hash), and how often."""

    def __init__(self, table: str) -> None:
        self._table, self._over = table, threading.Event()
        self.seen: list[frozenset[tuple[str, str]]] = []
        self.polls, self.error = 0, ""
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def _poll(self) -> None:
        while not self._over.wait(0.1):
            try:
                rows = pa.table(deltalake.DeltaTable(self._table).scan(columns=["image_id", "content_hash"]))
            except Exception as error:  # whatever it is, a reader must not meet it
                self.error = f"{type(error).__name__}: {error}"
                return
            found = frozenset(zip(rows["image_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))
            self.polls += 1
            if not self.seen or self.seen[-1] != found:
                self.seen.append(found)

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


class Verdict:
    """What was checked, line by line; `wrong` counts what failed."""

    def __init__(self) -> None:
        self.wrong = 0

    def __call__(self, holds: bool, what: str) -> None:
        self.wrong += not holds
        print(f"{'ok   ' if holds else 'WRONG'} {what}", flush=True)


def keys(rows: pa.Table) -> dict[str, str]:
    """Return the content hash by id; an id that comes twice is lost, and shows in the number of rows."""
    return dict(zip(rows["image_id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True))


def compare(one: pa.Table, other: pa.Table) -> tuple[int, float]:
    """Return in how many rows of equal id and content the labels differ off the fence, and the largest difference of confidence."""
    base = duckdb.connect()
    base.register("one", one)
    base.register("other", other)
    joined = "one join other on one.image_id = other.image_id and one.content_hash = other.content_hash"
    off = f"one.top_k[1].probability - one.top_k[2].probability > {FENCE}"
    [(labels, confidence)] = base.sql(
        f"select count(*) filter (where one.class_index <> other.class_index and {off}), "
        f"coalesce(max(abs(one.confidence - other.confidence)), 0) from {joined}"
    ).fetchall()
    return int(labels), float(confidence)


def check(verdict: Verdict, nights: Nights, photos: Photos, before: pa.Table, day: tuple[int, int, int]) -> None:
    """The second night's view against the folder, against its Delta table, and against the night before."""
    files, present, (new, changed, gone) = nights.files(), photos.names(), day
    verdict(
        keys(files) == present and files.num_rows == len(present),
        f"plain files: the folder's {len(present):,} photos, one row each",
    )
    verdict(nights.delta().equals(files), f"Delta table: the same {files.num_rows:,} rows, all columns")
    untouched = {key: value for key, value in keys(before).items() if present.get(key) == value}
    verdict(
        len(untouched) == before.num_rows - changed - gone,
        f"{len(untouched):,} photos are as they were, {new} new, {changed} changed, {gone} gone",
    )
    base = duckdb.connect()
    base.register("before", before)
    base.register("now", files)
    same = base.sql("select count(*) from (select * from before intersect select * from now)").fetchall()
    verdict(same == [(len(untouched),)], f"{len(untouched):,} rows of untouched photos are equal in all columns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="photos in the first night, at most all of flowers5")
    options = parser.parse_args()
    verdict = Verdict()
    with tempfile.TemporaryDirectory(prefix="nightshift-nights-") as name:
        folder = Path(name)
        photos = Photos(folder / "photos", options.images)
        nights, clean = Nights(folder, photos.folder, "store"), Nights(folder, photos.folder, "clean")
        nights.command("train")
        nights.night("first night")
        before = nights.delta()
        yesterday = frozenset(photos.names().items())
        day = photos.pass_a_day()
        with Reader(nights.table) as reader:
            record = nights.night("second night")
        tonight = frozenset(photos.names().items())
        share = record["labelled"] / len(tonight)
        verdict(
            record["labelled"] == day[0] + day[1],
            f"labelled {record['labelled']} = {share:.1%}: what is new or changed",
        )
        verdict(
            not reader.error and set(reader.seen) <= {yesterday, tonight},
            f"{reader.polls} reads of the Delta table during the night saw yesterday or tonight {reader.error}",
        )
        check(verdict, nights, photos, before, day)
        tomorrow = nights.night("third night")
        verdict(tomorrow["labelled"] == 0, f"the third night, with nothing new, labelled {tomorrow['labelled']}")
        clean.command("train")
        clean.night("from nothing")
        fresh, now = clean.files(), nights.files()
        labels, confidence = compare(now, fresh)
        verdict(
            keys(fresh) == keys(now) and not labels,
            f"a store that starts empty has the same rows and labels; confidences differ by at most {confidence:.1e}",
        )
    sys.exit(bool(verdict.wrong))


if __name__ == "__main__":
    main()
