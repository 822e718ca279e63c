"""What a worker must know besides its shard: small documents that mean the same in every process and need no torch."""

from dataclasses import dataclass

from pipeline.layout import Generation
from pipeline.settings import InputSettings, LabelSettings, StorageSettings


@dataclass(frozen=True)
class LabelTask:
    """Label shards with `generation.model` at `version`. `threads` decode while one predicts."""

    store: str
    storage: StorageSettings
    input: InputSettings
    label: LabelSettings
    generation: Generation
    version: str
    run_id: str
    threads: int = 1
