"""Weights that torchvision publishes, by name: fetched once into the store's cache, as safetensors.

The published files are pickles. They are taken from the address that the installed torchvision names, compared with the digest
in that address, and read by torch's restricted unpickler, which builds tensors and runs no code.
"""

import hashlib
import io
import pickle
import re

import torch
from safetensors.torch import save

from pipeline import layout, zoo
from pipeline.bundle import StateDict, parse_weights
from pipeline.errors import ModelError, NotFoundError, StorageError, TransientError
from pipeline.settings import ModelSettings, StorageSettings
from pipeline.storage import Storage, open_storage


def published_state(store: Storage, storage: StorageSettings, builder: str, name: str) -> StateDict:
    """Return a builder's published weights; errors are those of `fetch_published`."""
    path = fetch_published(store, storage, builder, name)
    try:
        return parse_weights(store.read(path), path)
    except ModelError:  # damaged is as good as absent: it is a cache
        store.delete(path)
    return parse_weights(store.read(fetch_published(store, storage, builder, name)), path)


def fetch_published(store: Storage, storage: StorageSettings, builder: str, name: str) -> str:
    """Put a builder's published weights into the store's cache, unless they are there, and return their path.

    The path names the file that was published, and with it the beginning of its digest: other weights, another path.

    Raises
    ------
    ModelError
        For an unknown name, when they cannot be fetched, or when the file is not the one that was published.
    """
    url = zoo.published_weights(builder, name).url
    file = url.rsplit("/", 1)[-1]
    path = layout.published_weights(file.rsplit(".", 1)[0])
    try:
        store.stat(path)
        return path
    except NotFoundError:
        pass
    data = _fetch(url, storage)
    expected = re.search(r"-([0-9a-f]{8,64})\.", file)
    if expected and not hashlib.sha256(data).hexdigest().startswith(expected[1]):
        raise ModelError(
            f"model.weights: {url} is not the file that torchvision's {builder} {name} names: its SHA-256 does not begin "
            f"with {expected[1]}; whatever stands between here and there changed it"
        )
    state = _converted(builder, name, url, data)
    store.write(path, save({key: tensor.contiguous() for key, tensor in state.items()}))
    return path


def _fetch(url: str, storage: StorageSettings) -> bytes:
    folder, _, file = url.rpartition("/")
    try:
        return open_storage(folder, storage).read(file)
    except (StorageError, TransientError) as error:
        raise ModelError(
            f"model.weights: {url} cannot be fetched ({error}); where there is no way to it, give the weights as a .safetensors "
            "file"
        ) from error


def _converted(builder: str, name: str, url: str, data: bytes) -> StateDict:
    """Return the state dict as the present network names it: old checkpoints lack counters, and DenseNet's have old names."""
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ModelError(f"model.weights: {url} is not a readable checkpoint ({error})") from error
    if builder.startswith("densenet"):
        state = {re.sub(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key): state[key] for key in state}
    arguments = zoo.with_auxiliary(zoo.blueprint(ModelSettings(builder=builder, weights=name))[0])
    net = zoo.build(builder, arguments, zoo.count_outputs(builder, arguments, state))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"model.weights: {url} does not fit this torchvision's {builder} ({error})") from error
    return net.state_dict()
