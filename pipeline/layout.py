"""Where everything lies in the store: the only place that spells its paths."""

from dataclasses import dataclass

from pipeline.documents import digest

ROLLUP = "rollup.parquet"


@dataclass(frozen=True)
class Generation:
    """All labels that one model, asked in one way, gives to one data set."""

    dataset: str
    model: str
    fingerprint: str

    @property
    def name(self) -> str:
        """Return `<model>@<fingerprint>`, the folder that the three kinds of files share."""
        return f"{self.model}@{self.fingerprint}"

    def labels(self, shard_id: str, run_id: str) -> str:
        """Path of a shard's predictions, as one run writes them: no run overwrites what another one has published."""
        return f"{self.folder('labels')}/{_by_run(shard_id, run_id)}"

    def quarantine(self, shard_id: str, run_id: str) -> str:
        """Path of a shard's rejected rows, as one run writes them."""
        return f"{self.folder('quarantine')}/{_by_run(shard_id, run_id)}"

    def copy(self, kind: str, reason: str, name: str) -> str:
        """Path of rows copied when publishing: `reason` is `trimmed`, `compacted` or `duplicates`."""
        return f"{self.folder(kind)}/{reason}/{name}.parquet"

    def folder(self, kind: str) -> str:
        """Folder of all `labels` or `quarantine` files of the generation."""
        return f"{kind}/{self.dataset}/{self.name}"

    def ledger(self, shard_id: str = "") -> str:
        """Path of a shard's commit, or of the folder of all."""
        folder = f"ledger/{self.dataset}/{self.name}"
        return f"{folder}/{shard_id}.json" if shard_id else folder

    def rollup(self) -> str:
        """Path of the copy of all commits in one file."""
        return f"{self.ledger()}/{ROLLUP}"


def _by_run(shard_id: str, run_id: str) -> str:
    return f"{shard_id}-{digest(run_id, 6)}.parquet"


def table(dataset: str) -> str:
    """Folder of a data set's Delta table, which all generations of its labels lie below."""
    return f"labels/{dataset}"


def plans(dataset: str) -> str:
    """Folder of a data set's plan snapshots."""
    return f"plans/{dataset}"


def published(dataset: str) -> str:
    """Folder of a data set's views."""
    return f"published/{dataset}"


def review(dataset: str, n: int) -> str:
    """Path of the labels of view n that a person should look at."""
    return f"{reviews(dataset)}/{n}.parquet"


def reviews(dataset: str) -> str:
    """Folder of a data set's review files."""
    return f"review/{dataset}"


def identities(dataset: str) -> str:
    """Folder of a data set's digests of image ids: a cache."""
    return f"cache/identities/{dataset}"


def features(dataset: str, fingerprint: str, shard_id: str) -> str:
    """Path of a shard's examples: labels, splits and, for a backbone, its features."""
    return f"features/{dataset}/{fingerprint}/{shard_id}.parquet"


def training(run_key: str) -> str:
    """Folder of one training's checkpoints."""
    return f"trainings/{run_key}"


def trial(run_key: str, trial_id: str) -> str:
    """Path of the record of one trial of a tuning."""
    return f"{training(run_key)}/trials/{trial_id}.json"


def tuning(run_key: str) -> str:
    """Path of what a tuning found."""
    return f"{training(run_key)}/tuning.json"


def fold(run_key: str, num_folds: int, number: int) -> str:
    """Path of what one fold of a cross-validation found."""
    return f"{training(run_key)}/folds/{num_folds}-{number}.json"


def bundle(model: str, version: str) -> str:
    """Folder of one sealed bundle."""
    return f"models/{model}/{version}"


def published_weights(name: str) -> str:
    """Path of weights that torchvision publishes, as safetensors: a cache."""
    return f"cache/weights/{name}.safetensors"


def production(model: str) -> str:
    """Folder of the pointer to the version that labels tonight."""
    return f"models/{model}/production"


def evaluation(dataset: str, rows: str, judged: str) -> str:
    """Path, without its suffix, of the figures (.json) and rows (.parquet) of a version on some rows."""
    return f"evaluations/{dataset}/{rows}/{judged}"


def looks(dataset: str, test_set: str) -> str:
    """Folder of all looks at a test set."""
    return f"looks/{dataset}/{test_set}"


def look(dataset: str, test_set: str, judged: str) -> str:
    """Path of the one look that a version (`name@version`) has at a test set."""
    return f"{looks(dataset, test_set)}/{judged}.json"


def holds(dataset: str) -> str:
    """Folder of what checks have held back, and of the decisions about it."""
    return f"holds/{dataset}"


def lease(dataset: str) -> str:
    """Path of the lease of a data set."""
    return f"leases/{dataset}.json"


def run(run_id: str) -> str:
    """Folder of one run's record and page."""
    return f"runs/{run_id}"
