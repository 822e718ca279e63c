"""How the learning rate goes over a training: a factor for every step, and nothing to remember but the step."""

import math

from pipeline.trainsettings import TrainSettings

# Of L. N. Smith and N. Topin, "Super-convergence" (arXiv 1708.07120), with torch's OneCycleLR's figures: the rate rises from
# a 25th over the first 30 % of the steps, and ends at a 250,000th.
RISE_FROM, RISE_SHARE, END_AT = 1 / 25, 0.3, 1 / 25 / 1e4


def peak_rate(settings: TrainSettings) -> float:
    """Return the learning rate that factors apply to: the config's, in proportion to the batch where it names one.

    Notes
    -----
    The linear scaling rule of P. Goyal et al., "Accurate, large minibatch SGD" (arXiv 1706.02677).
    """
    if settings.learning_rate_batch is None:
        return settings.learning_rate
    return settings.learning_rate * settings.batch_size / settings.learning_rate_batch


def rate_factor(settings: TrainSettings, step: int, num_steps: int, steps_per_epoch: int) -> float:
    """Return what the peak rate is multiplied by in a step of `num_steps`, both over the whole training."""
    warmup = min(num_steps - 1, round(settings.warmup_epochs * steps_per_epoch))
    if settings.schedule == "one_cycle":
        return _one_cycle(step, num_steps, warmup)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    return _cosine(1.0, 0.0, (step - warmup) / (num_steps - warmup))


def _one_cycle(step: int, num_steps: int, warmup: int) -> float:
    rise = warmup or RISE_SHARE * num_steps
    last_rising = max(1.0, rise - 1)
    if step <= last_rising:
        return _cosine(RISE_FROM, 1.0, step / last_rising)
    return _cosine(1.0, END_AT, (step - last_rising) / max(1.0, num_steps - 1 - last_rising))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(1.0, share)))
