"""Where everything lies in the store: the only place that spells its paths."""

from dataclasses import dataclass


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

    def labels(self, shard_id: str) -> str:
        """Path of a shard's predictions."""
        return f"labels/{self.dataset}/{self.name}/{shard_id}.parquet"

    def trimmed(self, name: str) -> str:
        """Path of a copy of predictions without stale rows."""
        return f"labels/{self.dataset}/{self.name}/trimmed/{name}.parquet"

    def quarantine(self, shard_id: str) -> str:
        """Path of a shard's rejected rows."""
        return f"quarantine/{self.dataset}/{self.name}/{shard_id}.parquet"

    def ledger(self, shard_id: str = "") -> str:
        """Path of a shard's commit, or of the folder of all."""
        folder = f"ledger/{self.dataset}/{self.name}"
        return f"{folder}/{shard_id}.json" if shard_id else folder


def plans(dataset: str) -> str:
    """Folder of a data set's plan snapshots."""
    return f"plans/{dataset}"


def published(dataset: str) -> str:
    """Folder of a data set's views."""
    return f"published/{dataset}"


def features(dataset: str, fingerprint: str, shard_id: str) -> str:
    """Path of a shard's examples: labels, splits and, for a backbone, its features."""
    return f"features/{dataset}/{fingerprint}/{shard_id}.parquet"


def training(run_key: str) -> str:
    """Folder of one training's checkpoints."""
    return f"trainings/{run_key}"


def bundle(model: str, version: str) -> str:
    """Folder of one sealed bundle."""
    return f"models/{model}/{version}"


def production(model: str) -> str:
    """Folder of the pointer to the version that labels tonight."""
    return f"models/{model}/production"


def run(run_id: str) -> str:
    """Folder of one run's record and page."""
    return f"runs/{run_id}"
