"""What a worker shows of its training while it trains, for whoever looks on from another thread or process."""

from dataclasses import dataclass, field


@dataclass
class Pulse:
    """Counters that only grow.

    `beats` counts signs of life: steps, and batches of validation. `steps` counts those whose batch was read and whose
    forward pass is done: a worker that others wait for has fewer than they. `busy_s` is the time until there, which is
    this worker's own; what follows is spent together.
    """

    examples: int = 0
    steps: int = 0
    beats: int = 0
    busy_s: float = 0.0
    warnings: list[str] = field(default_factory=list)

    def ready(self, seconds: float) -> None:
        """Say that a batch has been read and its forward pass is done."""
        self.steps += 1
        self.busy_s += seconds

    def advanced(self, examples: int) -> None:
        """Say that so many more examples are trained on."""
        self.examples += examples
        self.beats += 1

    def beat(self) -> None:
        """Say that there was progress that trains nothing."""
        self.beats += 1

    def warn(self, words: str) -> None:
        """Say something that a person should hear."""
        self.warnings.append(words)
