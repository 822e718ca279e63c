"""A real Ray head with its dashboard and token authentication, on loopback, in processes of its own."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE_S = 120


def free_ports(number):
    """Return ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Head:
    """`ray start --head`, until it is closed. `environment` is what its nodes have, as a container would."""

    def __init__(self, environment, cpus=2):
        self.folder = Path(tempfile.mkdtemp(prefix="ns-"))  # sockets lie in it, and their paths are short
        self.token = secrets.token_hex(32)
        gcs, dashboard, agent, client = free_ports(4)
        self.url, self.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        (self.folder / "token").write_text(self.token)
        given = {
            **os.environ, **environment, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip
        given.pop("RAY_ADDRESS", None)
        command = [
            "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
            f"--num-cpus={cpus}", "--object-store-memory=100000000", f"--temp-dir={self.folder}", "--disable-usage-stats",
        ]  # fmt: skip
        self._log = (self.folder / "start.log").open("w")
        self.process = subprocess.Popen(
            command, env=given, stdout=self._log, stderr=self._log, start_new_session=True, cwd=self.folder
        )
        try:
            self._await()
        except BaseException:
            self.close()
            raise

    def _await(self):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            assert self.process.poll() is None, (self.folder / "start.log").read_text()[-2000:]
            if (code := self._answer()) is not None:
                assert code == 401, f"the dashboard answers {code} to who has no token"
                return
            time.sleep(0.2)
        raise AssertionError("the head did not start in time")

    def _answer(self):
        """Return the HTTP status that the dashboard answers without a token, None while it does not."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/version", timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def close(self):
        """End all its processes, and remove what they wrote."""
        from test_chaos import below

        left = [self.process.pid, *below(self.process.pid)]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
