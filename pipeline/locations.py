"""URIs found in tables: where they point, whether they may, and their bytes.

A table is input, not configuration, so its URIs are followed only below allowed prefixes (default: the input's own).
"""

import posixpath
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import AccessDeniedError, ImageError, NotFoundError, StorageError
from pipeline.refusals import printable
from pipeline.settings import InputSettings, StorageSettings
from pipeline.storage import absolute_url, join, open_storage, scheme_of

DENIED = "access_denied"


def resolve(uri: str, base: str, allowed: tuple[str, ...]) -> tuple[str, str]:
    """Return the longest allowed prefix that holds `uri` and the path below it; ImageError when none does.

    Relative URIs lie below `base`. All URIs below one prefix share its storage, so there is one client for them.
    """
    located = uri if scheme_of(uri) != "file" or uri.startswith(("/", "file://")) else join(base, uri)
    try:
        location = _normal(located)
    except (OSError, RuntimeError, ValueError) as error:  # a cycle of links, a zero byte
        raise ImageError("read", "unreadable", f"{printable(uri)!r} is no usable location: {error}") from error
    prefixes = (prefix if prefix.endswith("/") else f"{prefix}/" for prefix in map(_normal, allowed))
    holding = max((prefix for prefix in prefixes if location.startswith(prefix)), key=len, default="")
    if holding:
        return holding.rstrip("/") or "/", location.removeprefix(holding)
    raise ImageError(
        "read",
        "forbidden_location",
        f"{printable(uri)} lies outside the allowed prefixes ({', '.join(allowed)}); "
        "add its folder to input.allowed_prefixes if it is yours",
    )


def _normal(url: str) -> str:
    """Resolve `..` and, for files, links: what is compared is what is opened."""
    scheme = scheme_of(url)
    if scheme == "file":
        return str(Path(absolute_url(url)).resolve())
    rest = url.partition("://")[2]
    if scheme in ("http", "https"):  # elsewhere % is a character of the key
        rest = unquote(rest)
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
    prefix, path = resolve(uri, base, settings.allowed_prefixes or (base,))
    location = join(prefix, path)
    try:
        return open_storage(prefix, storage).read(path)
    except NotFoundError as error:
        raise ImageError("read", "not_found", printable(f"{location} does not exist")) from error
    except AccessDeniedError as error:
        raise ImageError("read", DENIED, str(error)) from error
    except StorageError as error:
        raise ImageError("read", "unreadable", str(error)) from error
