"""URIs found in tables: where they point, whether they may, and their bytes.

A table is input, not configuration, so its URIs are followed only below allowed prefixes (default: the input's own).
"""

import posixpath
from pathlib import Path

from pipeline.errors import ImageError, NotFoundError, StorageError
from pipeline.settings import InputSettings, StorageSettings
from pipeline.storage import absolute_url, open_storage, scheme_of


def resolve(uri: str, base: str, allowed: tuple[str, ...]) -> str:
    """Return the absolute location of `uri`, relative ones below `base`; ImageError outside `allowed`."""
    located = uri if scheme_of(uri) != "file" or uri.startswith(("/", "file://")) else f"{base.rstrip('/')}/{uri}"
    location = _normal(located)
    if any(location.startswith(f"{_normal(prefix)}/") for prefix in allowed):
        return location
    raise ImageError(
        "read",
        "forbidden_location",
        f"{uri} lies outside the allowed prefixes ({', '.join(allowed)}); "
        "add its folder to input.allowed_prefixes if it is yours",
    )


def _normal(url: str) -> str:
    """Resolve `..` and, for files, links: what is compared is what is opened."""
    if scheme_of(url) == "file":
        return str(Path(absolute_url(url)).resolve())
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{posixpath.normpath(rest)}"


def fetch(uri: str, base: str, settings: InputSettings, storage: StorageSettings) -> bytes:
    """Read the object that a table's URI names.

    Raises
    ------
    ImageError
        When it may not be read, does not exist, or the store refuses it.
    TransientError
        When the store could not answer: the attempt fails, not the row.
    """
    location = resolve(uri, base, settings.allowed_prefixes or (base,))
    folder, _, name = location.rpartition("/")
    try:
        return open_storage(folder, storage).read(name)
    except NotFoundError as error:
        raise ImageError("read", "not_found", f"{location} does not exist") from error
    except StorageError as error:
        raise ImageError("read", "unreadable", str(error)) from error
