"""What an evaluation says, in words."""

from jobs.console import counted, say
from pipeline.documents import Document
from pipeline.looks import luck_of_best

SLICES_SAID = 5


def announce(document: Document) -> None:
    """Say the figures, and what to think of them."""
    if document.get("task") == "multi_label":
        _announce_labels(document)
    else:
        _announce_classes(document)
    if document["quarantined"]:
        say(f"{counted(document['quarantined'])} of the split cannot be read")
    if document["unknown_labels"] and document.get("task") == "multi_label":
        say(
            f"{counted(sum(document['unknown_labels'].values()), 'label')} of the split not judged: no class of the model"
        )
    elif document["unknown_labels"]:
        say(
            f"{counted(sum(document['unknown_labels'].values()))} of the split not judged: the model does not know the label"
        )
    for row in [row for row in document["slices"] if row["worse"]][:SLICES_SAID]:
        low, high = row["interval95"]
        say(
            f"worse than the rest: {row['column']} {row['value']}: {row['share']:.1%} ({low:.1%} to {high:.1%}) of "
            f"{counted(row['num_images'])} right"
        )
    if document.get("looks", 0) > 1:
        luck = luck_of_best(document["looks"], document["top1"], document["num_images"])
        say(
            f"look {document['looks']} at this test set: of so many equally good models the best would seem {100 * luck:.1f} points "
            "better than it is"
        )


def _announce_labels(document: Document) -> None:
    micro = document["micro"]
    say(
        f"split {document['split']}: mean average precision {_share(document['map'])}; with the thresholds of the bundle F1 "
        f"{_share(micro['f1'])} (precision {_share(micro['precision'])}, recall {_share(micro['recall'])}), all labels of an "
        f"image right {document['exact']:.1%}; loss {document['loss']:.3f}, on {counted(document['num_images'])}"
    )


def _share(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.1%}"


def _announce_classes(document: Document) -> None:
    low, high = document["interval95"]
    say(
        f"split {document['split']}: top-1 {document['top1']:.1%} ({low:.1%} to {high:.1%} with 95 % confidence), "
        f"top-5 {document['top5']:.1%}, loss {document['loss']:.3f}, on {counted(document['num_images'])}; confidence and accuracy "
        f"are {document['calibration']['ece']:.1%} apart"
    )
