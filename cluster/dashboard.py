"""The dashboard of a Ray cluster, as far as jobs need it: a client with limits of time, the token, and errors in our words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.errors import AlreadyExistsError, NightshiftError, NotFoundError, TransientError, UsageError
from pipeline.refusals import first_line, printable

CONNECT_S, ANSWER_S = 10.0, 120.0  # Ray's own client (2.60) waits for ever
LATER = (408, 425, 429)  # among the statuses that otherwise say that the request is wrong


class Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, with limits of time."""

    def _do_request(self, method: str, endpoint: str, **arguments: Any) -> requests.Response:
        limits = (CONNECT_S, ANSWER_S)
        answer: requests.Response = super()._do_request(method, endpoint, timeout=limits, **arguments)
        return answer


def connect(address: str) -> Client:
    """Return a client of the dashboard at a URL; see `in_words` for what it raises."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(
            f"{printable(address)!r}: jobs are submitted to a cluster's dashboard; give its URL, such as http://head:8265"
        )
    with _without("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"), in_words(address):
        return Client(address, headers=headers())


def headers() -> dict[str, str]:
    """Return the header that carries the cluster's token, which lies where Ray looks for it; empty without one.

    Ray's client (2.60) sends it only when RAY_AUTH_MODE was set before the first import of ray.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return {}
    token, where = os.environ.get("RAY_AUTH_TOKEN"), "RAY_AUTH_TOKEN"
    if not token:
        path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
        where = str(path)
        try:
            token = path.read_text()
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where}: the cluster's token cannot be read ({type(error).__name__})") from error
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"{where}: this is no token, which is one word of ASCII; write it anew")
    return {"Authorization": f"Bearer {token}"}


@contextmanager
def in_words(address: str) -> Iterator[None]:
    """Raise what goes wrong inside as our errors, with the address in the message.

    Raises
    ------
    UsageError
        No dashboard, a wrong token, or a request that it refuses.
    NotFoundError, AlreadyExistsError
        No job of this id, or there is one.
    TransientError
        Nothing answers, or it says that it cannot now.
    """
    at = printable(address)
    try:
        yield
    except NightshiftError:
        raise
    except AuthenticationError as error:
        raise _unknown_token(at, first_line(error)) from error
    except aiohttp.WSServerHandshakeError as error:
        raise _by_status(at, error.status, f"status {error.status}") from error
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise _by_status(at, status, first_line(error), no_dashboard=True) from error
    except requests.JSONDecodeError as error:
        raise _no_dashboard(at) from error
    except (ConnectionError, requests.ConnectionError, requests.Timeout, aiohttp.ClientError) as error:
        raise TransientError(
            f"no Ray dashboard answers at {at} ({type(error).__name__}); is the cluster up, and is its port forwarded to this "
            "machine?"
        ) from error
    except RuntimeError as error:  # what Ray's client makes of a status that is not 200, and of a broken websocket
        raise _refusal(at, str(error)) from error
    except (KeyError, TypeError, ValueError) as error:  # an answer of another kind
        raise _no_dashboard(at) from error


def _no_dashboard(at: str) -> UsageError:
    return UsageError(
        f"{at} is no dashboard of a Ray cluster, or of one that is too old; give its URL, such as http://head:8265"
    )


def _unknown_token(at: str, said: str) -> UsageError:
    return UsageError(
        f"{at} wants its cluster's token ({said}); put it into the environment as RAY_AUTH_TOKEN, or into a file that "
        "RAY_AUTH_TOKEN_PATH names (default: ~/.ray/auth_token)"
    )


def _by_status(at: str, status: int, said: str, no_dashboard: bool = False) -> NightshiftError:
    """Return the error of an HTTP status."""
    if status >= 500 or status in LATER:
        return TransientError(f"{at} cannot answer now: {said}")
    if status in (401, 403):
        return _unknown_token(at, said)
    if no_dashboard:
        return _no_dashboard(at)
    if status == 404:
        return NotFoundError(
            f"{at} knows no such job ({said}); `nightshift jobs` lists them. A cluster that was started anew has forgotten its "
            "jobs, but the store has what they did: submit again"
        )
    return UsageError(f"{at} refuses: {said}")


def _refusal(at: str, text: str) -> NightshiftError:
    """Return the error of what Ray's client says: `Request failed with status code 500: ...`, often with a traceback."""
    if "already exists" in text:
        return AlreadyExistsError(f"{at} has a job of this id already")
    if "Version check returned 404" in text:
        return _no_dashboard(at)
    before, _, rest = text.partition("status code ")
    digits = rest[:3]
    if not before or not digits.isdigit():
        return TransientError(f"{at} cannot answer now: {first_line(Exception(text))}")
    lines = [line for line in rest[3:].lstrip(": ").splitlines() if line.strip()]
    last = lines[-1].strip().rstrip(".") if lines else f"status {digits}"  # what a traceback ends with
    said = printable(last)[:300]
    return _by_status(at, int(digits), said)


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Hide variables for a moment: for Ray (2.60) they win over the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
