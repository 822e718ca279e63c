"""What an object store's errors mean: obstore's exceptions, and the refusals that it does not tell apart, as ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions as failures

from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    NightshiftError,
    NotFoundError,
    StorageError,
    TransientError,
)
from pipeline.refusals import changed, first_line, missing, printable

# HTTP: timeout, conflict with a write under way, too early, too many requests. All 5xx may pass as well: S3's SlowDown
# and Azure's ServerBusy are 503, OperationTimedOut is 500.
REFUSED_FOR_NOW = (409, 425, 429)
PASSING_REFUSALS = (408, *REFUSED_FOR_NOW)

# Where object_store asks the platform for credentials when it was given none: AWS twice, GCS, Azure.
METADATA = ("/latest/api/token", "/latest/meta-data", "/computeMetadata/", "/metadata/identity/")


class RefusedForNowError(TransientError):
    """The store said that it did nothing, such as 429: unlike after a lost answer, a write has not gone through."""


class UnspellableKeyError(StorageError):
    """A key that object_store has no spelling for: with an empty part (`a//b`) or control characters."""


@contextmanager
def translated(location: str) -> Iterator[None]:
    """Turn obstore's errors into ours, with the location in the message."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(location) from error
    except failures.AlreadyExistsError as error:
        raise AlreadyExistsError(f"{printable(location)} exists already") from error
    except failures.PreconditionError as error:
        raise changed(location) from error
    except (failures.PermissionDeniedError, failures.UnauthenticatedError, PermissionError) as error:
        raise _denied(location) from error
    except failures.GenericError as error:
        raise _generic(printable(location), error) from error
    except (failures.InvalidPathError, ValueError) as error:
        raise UnspellableKeyError(f"{printable(location)}: {first_line(error)}; use another name") from error
    except failures.BaseError as error:
        raise StorageError(f"{printable(location)}: {first_line(error)}; use another name, or another store") from error


def _generic(location: str, error: Exception) -> NightshiftError:
    """Tell the refusals that obstore (as of 0.12) calls generic, among them all of LIST, from what may pass."""
    words = str(error)
    status = re.search(r"status code: (\d{3})", words)
    code = int(status[1]) if status else 0
    if "code: AccessDenied" in words:  # one key of a bulk DELETE, whose own status is 200
        return _denied(location)
    refused = 400 <= code < 500 and code not in PASSING_REFUSALS and "RequestTimeout" not in words
    if any(place in words for place in METADATA):
        return (StorageError if refused else TransientError)(
            f"{location}: no credentials; set them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY), run where the "
            "platform gives them, or set storage.anonymous for a public bucket"
        )
    if code in (401, 403):
        return _denied(location)
    if code == 404:
        return NotFoundError(f"{location} does not exist: check the bucket's name")
    if code in (301, 307) or "incorrectly configured region" in words:
        return StorageError(f"{location}: the bucket is in another region; set storage.region to its own")
    if refused:
        return StorageError(f"{location}: {first_line(error)}; check the storage section and the URL")
    return (RefusedForNowError if code in REFUSED_FOR_NOW else TransientError)(f"{location}: {first_line(error)}")


def exhausted(error: TransientError) -> bool:
    """Say whether obstore asked again by itself, and in vain: not worth a second round."""
    return ", max_retries: " in str(error.__cause__)


def _denied(location: str) -> AccessDeniedError:
    return AccessDeniedError(
        f"{printable(location)}: access denied; check the credentials in the environment and the bucket's policy"
    )
