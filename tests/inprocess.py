"""Trainings without a group of workers: one seat in the process of the test."""

import torch

from pipeline.errors import TransientError
from pipeline.fitting import fit
from pipeline.pulse import Pulse
from pipeline.seat import Seat


class InThisProcess:
    """`cluster.trainer.Trainer` with one seat in this process; may die after so many examples, as a process would."""

    def __init__(self, told=None):
        self.tasks, self.dies_after = [], None
        torch.set_num_threads(1)  # as a worker does

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def train(self, task, already, advanced):
        self.tasks.append(task)
        pulse = Shown(already, advanced, self.dies_after)
        fit(task, Seat(), lambda module: module, pulse)
        advanced(pulse.examples - pulse.shown)


class Shown(Pulse):
    """Tells a bar, and raises after so many examples."""

    def __init__(self, already, advanced, dies_after):
        super().__init__()
        self.shown, self.tell, self.dies_after = already, advanced, dies_after

    def advanced(self, examples):
        super().advanced(examples)
        self.tell(self.examples - self.shown)
        self.shown = self.examples
        if self.dies_after is not None and self.examples > self.dies_after:
            raise TransientError("the machine went away")
