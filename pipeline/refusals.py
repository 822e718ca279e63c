"""What stores refuse, in words: errors about a location, with credentials masked, and which of a file system's may pass."""

import errno
import re

from pipeline.errors import (
    AccessDeniedError,
    NightshiftError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    StoreFullError,
    TransientError,
)

_SECRETS = (
    # user:password@host in any URL, and a token alone before an HTTP host; abfss://container@account is no secret.
    (re.compile(r"://[^/\s@]*:[^/\s]*@|(?<=http)://[^/\s]+@|(?<=https)://[^/\s]+@"), "://***@"),
    # Signatures and tokens in a query: presigned S3 and GCS URLs, Azure's shared access signatures.
    (
        re.compile(r"([?&](?:sig|[\w.-]*(?:signature|credential|token|password|secret|key))=)[^&\s]+", re.IGNORECASE),
        r"\1***",
    ),
)


def _codes(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# Worth asking again after a moment: interrupted calls, other processes' locks, servers of network file systems.
BRIEF = _codes(
    "EAGAIN", "EBUSY", "EINTR", "EIO", "EMFILE", "ENFILE", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ECONNRESET", "EHOSTDOWN",
    "EHOSTUNREACH", "ENETUNREACH", "ENOLINK",
)  # fmt: skip
# Worth another attempt later.
PASSING = BRIEF | _codes("ENOMEM")
FULL = _codes("EDQUOT", "ENOSPC")


def printable(text: str) -> str:
    """Return a location, or a message with locations in it, with passwords, tokens and signatures masked."""
    for pattern, mask in _SECRETS:
        text = pattern.sub(mask, text)
    return text


def first_line(error: Exception) -> str:
    """Return what an error says in one line of at most 300 characters, secrets masked."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def damaged(location: str, error: Exception) -> StorageError:
    """Return the error of a file that does not hold what its footer, which was planned, promises."""
    return StorageError(f"{printable(location)}: damaged rows ({first_line(error)}); replace the file, then plan again")


def missing(location: str) -> NotFoundError:
    """Return the error for an object that is not there."""
    return NotFoundError(f"{printable(location)} does not exist")


def changed(location: str) -> SourceChangedError:
    """Return the error for an object that is not the planned version."""
    return _other(location, "changed", "takes the new version")


def vanished(location: str) -> SourceChangedError:
    """Return the error for a planned object that is not there any more."""
    return _other(location, "vanished", "leaves it out")


def _other(location: str, what: str, remedy: str) -> SourceChangedError:
    return SourceChangedError(
        f"{printable(location)} {what} since it was planned; `nightshift plan` or `nightly` {remedy}"
    )


def file_error(location: str, error: OSError) -> NightshiftError:
    """Return the operating system's error as ours, with the path in the message."""
    if isinstance(error, FileNotFoundError):
        return missing(location)
    message = f"{location}: {error.strerror}; check the path, its permissions and the free space"
    if isinstance(error, PermissionError):
        return AccessDeniedError(message)
    if error.errno in FULL:
        return StoreFullError(message)
    return (TransientError if error.errno in PASSING else StorageError)(message)
