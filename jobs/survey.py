"""What people should know of the examples before a training spends hours on them."""

from collections import Counter
from itertools import chain

from jobs.console import say
from pipeline.classes import Classes, classes_from_labels
from pipeline.errors import InputError
from pipeline.examples import Examples
from pipeline.settings import InputSettings
from pipeline.splits import missing
from pipeline.truths import contradicts_itself, names_in


def check_examples(examples: Examples, source: InputSettings) -> Classes:
    """Return the classes of the training rows, after saying everything about them that people should know."""
    train = [names_in(examples.labels[i]) for i in examples.of("train")]
    if not train:
        by_split = {split: sum(counts.values()) for split, counts in examples.label_counts.items()}
        raise InputError(
            f"no image has a label and belongs to the split train (labels by split: {by_split}); check input.label_column "
            "(or labels_column) and input.split_column"
        )
    classes = classes_from_labels(chain.from_iterable(train), fewest=1 if source.multi_label else 2)
    _warn_of_labels(examples, source, classes)
    _warn_of_images(examples, source)
    return classes


def _warn_of_labels(examples: Examples, source: InputSettings, classes: Classes) -> None:
    held_out = Counter[str]()
    for split in ("val", "test"):
        held_out.update(examples.label_counts.get(split, {}))
    for split, absent in missing(classes.names, examples.label_counts).items():
        if split in ("val", "test"):
            say(
                f"warning: no {split} image of {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}: it cannot be judged there"
            )
    if contradictions := sum(map(contradicts_itself, examples.labels)):
        say(
            f"warning: {contradictions:,} images have a label that stands in {source.labels_column} and in {source.absent_column}: "
            "it is taken as unknown there"
        )
    if strange := sorted(name for name in held_out if classes.index_of(name) is None):
        say(
            f"warning: {sum(held_out[name] for name in strange)} labels of held-out images are none that training sees: "
            f"{', '.join(strange[:5])}"
        )


def _warn_of_images(examples: Examples, source: InputSettings) -> None:
    if examples.leaked:
        say(
            f"warning: {examples.leaked} training images stand byte for byte in another split too; they are left out of training"
        )
    if examples.without_label:
        say(f"{examples.without_label:,} images without a label are left out")
    if examples.unreadable and source.filter:
        say(f"{examples.unreadable:,} images are not taken by input.filter, or cannot be read, and are left out")
    elif examples.unreadable:
        say(f"{examples.unreadable:,} images cannot be read and are left out; labelling lists them")
