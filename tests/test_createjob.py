import http.server
import json
import threading

import pytest

from cluster import createjob as module
from cluster.createjob import create, main

JOB = json.dumps({"kind": "RayJob", "metadata": {"generateName": "nightshift-photos-", "namespace": "nights"}}).encode()


@pytest.fixture
def account(tmp_path):
    """A service account's folder."""
    (tmp_path / "token").write_text("secret-token\n")
    return tmp_path


@pytest.fixture
def api():
    """An API server on loopback that creates, or refuses."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(
                (self.path, self.headers["Authorization"], self.rfile.read(int(self.headers["Content-Length"])))
            )
            self.send_response(self.server.status)
            self.end_headers()
            self.wfile.write(json.dumps({"metadata": {"name": "nightshift-photos-x7"}, "message": "no right"}).encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.status, server.url = asked, 201, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_job_is_created_in_its_namespace_with_the_accounts_token(api, account):
    assert create(JOB, api.url, account) == "nightshift-photos-x7"
    assert api.asked == [("/apis/ray.io/v1/namespaces/nights/rayjobs", "Bearer secret-token", JOB)]


def test_outside_a_pod_it_says_how_it_is_used(capsys, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["job.json"]) == 2
    assert "python -m cluster.createjob RAYJOB.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "words"), [(201, 0, "created nightshift-photos-x7"), (403, 1, "answers 403")]
)
def test_the_api_servers_answer_is_said(api, account, capsys, monkeypatch, tmp_path, status, code, words):
    api.status = status
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setattr(module, "create", lambda document, address: create(document, api.url, account))
    (tmp_path / "job.json").write_bytes(JOB)
    assert main([str(tmp_path / "job.json")]) == code
    said = capsys.readouterr()
    assert words in said.out + said.err
    assert "secret-token" not in said.out + said.err


def test_a_server_that_does_not_answer_is_said(account, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setattr(module, "create", lambda document, address: create(document, "http://127.0.0.1:9", account))
    (tmp_path / "job.json").write_bytes(JOB)
    assert main([str(tmp_path / "job.json")]) == 1
    assert "cannot be reached" in capsys.readouterr().err
