"""Create a RayJob from inside a Kubernetes cluster: what a plain CronJob runs. Nothing but the standard library is needed.

The pod's service account says who asks; its token, the cluster's certificate and the address lie where Kubernetes puts them.
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE_S = 30.0


def create(document: bytes, address: str, account: Path = ACCOUNT) -> str:
    """Create the RayJob of a JSON document in its namespace, and return the name that it was given.

    Raises
    ------
    OSError
        When the API server cannot be reached; urllib's HTTPError when it refuses.
    """
    namespace = json.loads(document)["metadata"]["namespace"]
    headers = {
        "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
        "Content-Type": "application/json",
    }
    url = f"{address}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
    certificate = account / "ca.crt"
    context = ssl.create_default_context(cafile=str(certificate)) if address.startswith("https") else None
    asked = urllib.request.Request(url, document, headers, method="POST")
    with urllib.request.urlopen(asked, timeout=PATIENCE_S, context=context) as answer:
        return str(json.loads(answer.read())["metadata"]["name"])


def main(arguments: list[str]) -> int:
    """Create what the file says; exit code 1 with the API server's words when it does not go."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if len(arguments) != 1 or not host:
        print("usage, in a pod: python -m cluster.createjob RAYJOB.json", file=sys.stderr)
        return 2
    try:
        print(f"created {create(Path(arguments[0]).read_bytes(), f'https://{host}:{port}')}")
        return 0
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")[:500]
        print(f"the API server answers {error.code}: {said}", file=sys.stderr)
    except OSError as error:
        print(f"the API server cannot be reached: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
