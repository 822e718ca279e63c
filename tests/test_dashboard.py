import aiohttp
import pytest
import requests
from ray.exceptions import AuthenticationError

from cluster import dashboard as module
from cluster.dashboard import connect, in_words
from pipeline.errors import AlreadyExistsError, NotFoundError, TransientError, UsageError

AT = "http://head:8265"


def failed(status, text):
    return RuntimeError(f"Request failed with status code {status}: {text}.")


def http(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Something", response=response)


TRACE = "Traceback (most recent call last):\n  File x\nValueError: Package size (120MiB) exceeds the maximum"


@pytest.mark.parametrize(
    ("raised", "error", "words"),
    [
        (failed(400, "Tra\nJob n already exists"), AlreadyExistsError, "of this id"),
        (failed(400, "bad runtime_env"), UsageError, "refuses: bad runtime_env$"),
        (failed(404, "Job n does not exist"), NotFoundError, "knows no such job"),
        (failed(500, TRACE), TransientError, r"cannot answer now: ValueError: Package size \(120MiB\) exceeds"),
        (failed(503, ""), TransientError, "cannot answer now"),
        (failed(429, "slow down"), TransientError, "slow down"),
        (AuthenticationError("Authentication required: no token\n\nlong"), UsageError, "RAY_AUTH_TOKEN_PATH"),
        (requests.JSONDecodeError("x", "y", 0), UsageError, "is no dashboard"),
        (http(404), UsageError, "is no dashboard"),
        (http(502), TransientError, "cannot answer now"),
        (http(429), TransientError, "cannot answer now"),
        (http(403), UsageError, "wants its cluster's token"),
        (RuntimeError("Version check returned 404. Jobs API is not supported"), UsageError, "is no dashboard"),
        (KeyError("ray_version"), UsageError, "is no dashboard"),
        (ValueError("Invalid version"), UsageError, "is no dashboard"),
        (ConnectionError("Failed to connect"), TransientError, r"no Ray dashboard answers .*\(ConnectionError\)"),
        (requests.ReadTimeout("slow"), TransientError, r"\(ReadTimeout\)"),
        (aiohttp.WSServerHandshakeError(None, (), status=404), NotFoundError, "knows no such job"),
        (aiohttp.WSServerHandshakeError(None, (), status=401), UsageError, "wants its cluster's token"),
        (aiohttp.WSServerHandshakeError(None, (), status=502), TransientError, "cannot answer now"),
        (RuntimeError("WebSocket connection closed unexpectedly"), TransientError, "cannot answer now: WebSocket"),
    ],
)
def test_what_goes_wrong_is_one_of_our_errors(raised, error, words):
    with pytest.raises(error, match=words) as found, in_words(AT):
        raise raised
    assert AT in str(found.value)


def test_our_own_errors_pass():
    with pytest.raises(UsageError, match=r"^mine$"), in_words(AT):
        raise UsageError("mine")


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "auto", "", "http://", "https:///x"])
def test_an_address_that_is_no_url_is_refused(address):
    with pytest.raises(UsageError, match="give its URL, such as http://head:8265"):
        connect(address)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "schlüssel", "bell\x07"])
def test_what_is_no_token_is_told_without_showing_it(monkeypatch, token):
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN: this is no token") as raised:
        module.headers()
    assert token not in str(raised.value)


@pytest.mark.parametrize(
    ("environment", "file", "expected"),
    [
        ({}, None, {}),
        ({}, " abc\n", {"Authorization": "Bearer abc"}),
        ({"RAY_AUTH_TOKEN": "xyz"}, "abc", {"Authorization": "Bearer xyz"}),
        ({"RAY_AUTH_MODE": "disabled"}, "abc", {}),
    ],
)
def test_the_token_is_found_where_ray_keeps_it(monkeypatch, tmp_path, environment, file, expected):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text(file)
    assert module.headers() == expected
    if file and not environment:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
        assert module.headers() == {}
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
        with pytest.raises(UsageError, match="cannot be read"):
            module.headers()


def test_the_environment_does_not_win_over_the_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://other:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:2")
    with pytest.raises(TransientError, match=r"http://127.0.0.1:9 "):
        connect("http://127.0.0.1:9")
    assert module.os.environ["RAY_ADDRESS"] == "http://other:1"
