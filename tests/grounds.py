"""A Ray cluster of several nodes on this machine, real raylets, which tests add nodes to and take them from."""

import contextlib
import json
import os
import signal
import subprocess
import sys

from test_chaos import below

# Holds the cluster in a process of its own: nodes are objects of the process that started them, and pytest's own
# process has a session already. One command per line, as JSON.
GROUND = """
import json, sys, time
from ray.cluster_utils import Cluster
cluster, nodes = Cluster(), []
for line in sys.stdin:
    command, given, more = json.loads(line)
    if command == "add":
        nodes.append(
            cluster.add_node(num_cpus=given, object_store_memory=80_000_000, include_dashboard=False, **more)
        )
    elif command == "behead":
        cluster.head_node.kill_gcs_server(False)
        time.sleep(given)
        cluster.head_node.start_gcs_server()
    else:
        cluster.remove_node(nodes[given], allow_graceful=False)
    raylets = [node.all_processes.get("raylet") for node in nodes]
    pids = [raylet and raylet[0].process.pid for raylet in raylets]
    print(json.dumps([cluster.address, [node.node_id for node in nodes], pids]), flush=True)
cluster.shutdown()
"""


class Ground:
    """A cluster that a test adds nodes to and takes them from."""

    def __init__(self, log, **head):
        self._log = log.open("w")
        command = [sys.executable, "-c", GROUND]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True
        )
        try:
            self.head = self.add(0, **head)
        except BaseException:
            self.close()
            raise

    def _tell(self, command, given, **more):
        self._process.stdin.write(json.dumps([command, given, more]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("["):
                self.address, self.ids, self._raylets = json.loads(line)
                return
        raise AssertionError(f"the cluster's process ended; see {self._log.name}")

    def add(self, cpus, **more):
        """Start a node, the head if it is the first, and return its number; `more` is for Ray."""
        self._tell("add", cpus, **more)
        return len(self.ids) - 1

    def behead(self, seconds):
        """Kill -9 the head's control service, and start it again after so long."""
        self._tell("behead", seconds)

    def raylet(self, number):
        """Return the process id of a node's raylet."""
        return self._raylets[number]

    def kill(self, number):
        """Kill -9 all that belongs to a node."""
        family = below(self._raylets[number])
        self._tell("kill", number)
        for pid in family:
            kill(pid, signal.SIGKILL)

    def labellers(self, number):
        """Return the process ids of the labellers on a node."""
        return [pid for pid, command in below(self._raylets[number]).items() if "ray::_Worker" in command]

    def all_labellers(self):
        """Return the process ids of all labellers."""
        return [pid for pid, command in below(self._process.pid).items() if "ray::_Worker" in command]

    def close(self):
        family = below(self._process.pid)
        self._process.kill()
        for pid in family:
            kill(pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            stream.close()


def kill(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
