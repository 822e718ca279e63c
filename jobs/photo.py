"""`nightshift label --image`: one photo, with the same answer as the batch job, and nothing written."""

import json
from pathlib import Path

from jobs.config import Config
from pipeline.errors import ImageError, InputError
from pipeline.page import speak
from pipeline.registry import resolve

SHOWN = 5  # best classes, at least


def label_photo(config: Config, path: str, as_json: bool) -> int:
    """Print the best classes of one image file.

    Raises
    ------
    InputError
        When the file does not exist or is no image.
    """
    from pipeline.bundle import load_bundle
    from pipeline.labelling import Predictor, answer

    store = config.open_store()
    version = resolve(store, config.model)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"--image {path}: {error.strerror}; give the path of an image file") from error
    bundle, embeddings = load_bundle(store, config.model.name, version, config.model.builder), config.label.embeddings
    if embeddings:
        from pipeline.heads import append_features

        append_features(bundle.net)
    predictor = Predictor(bundle, max(SHOWN, config.label.top_k), embeddings=embeddings)
    try:
        row = answer(predictor, path, data, config.input.max_pixels, config.label.exact)
    except ImageError as error:
        raise InputError(f"--image {path}: {error}") from error
    for best in [] if as_json else row["top_k"]:
        print(f"{best['probability']:7.2%}  {best['label']}")
    if as_json:
        print(json.dumps(row, ensure_ascii=False))
    elif "labels" in row:
        print("labels: " + (", ".join(row["labels"]) or "none"))
    else:
        print(speak(tuple((best["label"], best["probability"]) for best in row["top_k"])))
    return 0
