import http.server
import json
import sys
import threading

import pytest

from jobs.notify import message, notify
from pipeline.checksettings import NotifySettings

RECORD = {
    "command": "nightly", "dataset": "photos", "outcome": "finished, but held back: <!channel> & more", "images_in": 1200,
    "labelled": 1100, "quarantined": 100, "run_id": "night-1", "exit_code": 3,
}  # fmt: skip


@pytest.fixture
def hook(monkeypatch):
    """A webhook on loopback: what it got, and the status that it answers."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], json.loads(body)))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.status = got, 200
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NIGHTSHIFT_HOOK", f"http://127.0.0.1:{server.server_port}/services/T0/planted-secret")
    yield server
    server.shutdown()
    server.server_close()


SETTINGS = NotifySettings(webhook_variable="NIGHTSHIFT_HOOK")


def test_a_webhook_gets_slacks_json(hook):
    notify(RECORD, SETTINGS)
    ((path, kind, document),) = hook.got
    assert (path, kind) == ("/services/T0/planted-secret", "application/json")
    assert document == message(RECORD)
    assert document["text"].splitlines() == [
        "*nightshift nightly photos*: finished, but held back: &lt;!channel&gt; &amp; more",
        "1,200 images in = 1,100 labelled + 100 quarantined",
        "run night-1, exit code 3",
    ]


@pytest.mark.parametrize(("code", "told"), [(0, False), (1, True), (2, True), (3, True), (4, False), (5, True)])
def test_only_the_endings_that_are_wanted_are_told(hook, code, told):
    notify(RECORD | {"exit_code": code}, SETTINGS)
    assert bool(hook.got) is told


def test_all_endings_can_be_told(hook):
    notify(RECORD | {"exit_code": 0}, NotifySettings(webhook_variable="NIGHTSHIFT_HOOK", on=("complete",)))
    assert hook.got


@pytest.mark.parametrize(
    "trouble",
    [
        "refused",
        "gone",
        "missing",
        "http://[planted-secret",
        "http://host/planted secret",
        "http://host:planted-secret/",
    ],
)
def test_a_webhook_that_fails_fails_no_run_and_is_not_shown(hook, capsys, monkeypatch, trouble):
    if trouble == "refused":
        hook.status = 403
    elif trouble == "gone":
        monkeypatch.setenv("NIGHTSHIFT_HOOK", "http://127.0.0.1:9/planted-secret")
    elif trouble == "missing":
        monkeypatch.delenv("NIGHTSHIFT_HOOK")
    else:
        monkeypatch.setenv("NIGHTSHIFT_HOOK", trouble)
    notify(RECORD, SETTINGS)
    said = capsys.readouterr().err
    assert "nobody was notified" in said
    assert "NIGHTSHIFT_HOOK" in said
    assert "planted-secret" not in said


def test_a_command_gets_the_record(tmp_path):
    write = f"import sys; open({str(tmp_path / 'got')!r}, 'w').write(sys.stdin.read())"
    notify(RECORD, NotifySettings(command=(sys.executable, "-c", write)))
    assert json.loads((tmp_path / "got").read_text()) == RECORD


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/no/such/program",), "/no/such/program did not run"),
        ((sys.executable, "-c", "raise SystemExit(7)"), "exit code 7"),
    ],
)
def test_a_command_that_fails_is_said(capsys, command, words):
    notify(RECORD, NotifySettings(command=command))
    assert words in capsys.readouterr().err


def test_a_run_tells_how_it_ended(night, nightshift, local_ray, hook):
    ended = nightshift(night.config(notify={"webhook_variable": "NIGHTSHIFT_HOOK"}), "nightly")  # there is nothing
    assert ended.code == 2
    ((_, _, document),) = hook.got
    assert "*nightshift nightly data*: refused" in document["text"]
