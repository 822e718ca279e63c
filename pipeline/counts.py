"""The books: how many images went in, were labelled, were quarantined. They balance, or the run is not complete."""

from dataclasses import dataclass

from pipeline.errors import IntegrityError


@dataclass(frozen=True)
class Counts:
    """Images of some piece of work; adds up over shards."""

    images_in: int = 0
    labelled: int = 0
    quarantined: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.images_in + other.images_in, self.labelled + other.labelled, self.quarantined + other.quarantined
        )

    @property
    def bad_fraction(self) -> float:
        """Quarantined share of the images, 0 for none."""
        return self.quarantined / self.images_in if self.images_in else 0.0

    def check(self, where: str) -> None:
        """Raise IntegrityError unless images in = labelled + quarantined."""
        if self.images_in != self.labelled + self.quarantined:
            raise IntegrityError(
                f"{where}: {self.images_in} images in, but {self.labelled} labelled + {self.quarantined} quarantined; "
                "nothing was published. This is a defect of nightshift: please report it with the run's run.json"
            )
