import pytest
from obstore import exceptions as failures

from pipeline.answers import RefusedForNowError, UnspellableKeyError, exhausted, translated
from pipeline.errors import (
    AccessDeniedError,
    AlreadyExistsError,
    NightshiftError,
    NotFoundError,
    SourceChangedError,
    StorageError,
    TransientError,
)

HTTP = "Generic X error: Error performing PUT http://h/x in 1ms - Server returned non-2xx status code: "


def meaning(error: Exception) -> NightshiftError:
    with pytest.raises(NightshiftError) as caught, translated("az://box/x"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), NotFoundError),
        (failures.AlreadyExistsError("x"), AlreadyExistsError),
        (failures.PreconditionError("x"), SourceChangedError),
        (failures.PermissionDeniedError("x"), AccessDeniedError),
        (failures.UnauthenticatedError("x"), AccessDeniedError),
        (failures.InvalidPathError("a//b"), UnspellableKeyError),
        (ValueError("a//b"), UnspellableKeyError),
        (failures.NotSupportedError("x"), StorageError),
    ],
)
def test_obstores_own_kinds(error, kind):
    assert type(meaning(error)) is kind


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("503 Service Unavailable: <Code>SlowDown</Code>", TransientError),  # S3
        ("503 Service Unavailable: <Code>ServerBusy</Code>", TransientError),  # Azure
        ("500 Internal Server Error: <Code>OperationTimedOut</Code>", TransientError),  # Azure
        ("500 Internal Server Error: <Code>InternalError</Code>", TransientError),  # S3
        ("502 Bad Gateway", TransientError), ("504 Gateway Timeout", TransientError),
        ("408 Request Timeout", TransientError), ("400 Bad Request: <Code>RequestTimeout</Code>", TransientError),
        ("429 Too Many Requests: rateLimitExceeded", RefusedForNowError),  # GCS
        ("409 Conflict: <Code>ConditionalRequestConflict</Code>", RefusedForNowError),  # S3
        ("400 Bad Request: <Code>ExpiredToken</Code>", StorageError), ("416 Range Not Satisfiable", StorageError),
        ("403 Forbidden", AccessDeniedError), ("404 Not Found", NotFoundError),
    ],
)  # fmt: skip
def test_the_answers_of_s3_gcs_and_azure(words, kind):
    assert type(meaning(failures.GenericError(HTTP + words))) is kind


@pytest.mark.parametrize(
    "words",
    [
        "HTTP error: error sending request",
        "HTTP error: request or response body error",
        "Error getting list response body",
    ],
)
def test_no_answer_may_pass_and_a_write_may_have_gone_through(words):
    error = meaning(failures.GenericError(f"Generic S3 error: {words}"))
    assert type(error) is TransientError


def test_a_bulk_delete_that_is_denied_is_final():
    words = "Generic S3 error: Bulk delete request failed for key x: Access Denied (code: AccessDenied)"
    assert type(meaning(failures.GenericError(words))) is AccessDeniedError


@pytest.mark.parametrize(
    "place",
    [
        "latest/api/token",
        "computeMetadata/v1/instance/service-accounts/default/token",
        "metadata/identity/oauth2/token",
    ],
)
def test_asking_the_platform_in_vain_means_that_there_are_no_credentials(place):
    words = f"Error performing GET http://169.254.169.254/{place} in 1ms - Server returned non-2xx status code: "
    for status, kind in (("403 Forbidden", StorageError), ("503 Service Unavailable", TransientError)):
        error = meaning(failures.GenericError(words + status))
        assert type(error) is kind
        assert "no credentials; set them in the environment" in str(error)


def test_what_obstore_has_asked_again_itself_is_known():
    tried = (
        "Error performing GET http://h/x in 299ms, after 2 retries, max_retries: 2, retry_timeout: 30s  - HTTP error"
    )
    assert exhausted(meaning(failures.GenericError(tried)))
    assert not exhausted(meaning(failures.GenericError("HTTP error: request or response body error")))


def test_credentials_in_messages_are_masked():
    with pytest.raises(TransientError) as caught, translated("http://me:pw@host/x"):
        raise failures.GenericError("Error performing GET http://me:pw@host/x?sig=abc in 1ms - HTTP error")
    assert "pw" not in str(caught.value)
    assert "abc" not in str(caught.value)
