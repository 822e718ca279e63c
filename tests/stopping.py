"""Trainings in this process that end in the middle, as those do whose process is killed."""

from pipeline.pulse import Pulse


class Stopped(Exception):
    """Stands for whatever ends a process."""


class StoppingAfter(Pulse):
    """Ends the training once so many examples are done."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def advanced(self, examples):
        super().advanced(examples)
        if self.examples > self.count:
            raise Stopped
