"""Who hears how a run ended: a webhook that takes Slack's JSON, and a command of one's own. Neither can fail a run."""

import http.client
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from jobs.console import say
from pipeline.checksettings import NotifySettings
from pipeline.refusals import printable

PATIENCE_S = 15.0
COMMAND_S = 60.0
STDERR = 2
ENDINGS = ("complete", "failed", "refused", "held", "nothing_new", "stopped")  # by exit code


def notify(record: Mapping[str, Any], settings: NotifySettings) -> None:
    """Tell of a run's record, if its ending is one that is to be told."""
    if ENDINGS[record["exit_code"]] not in settings.on:
        return
    if settings.webhook_variable:
        _post(settings.webhook_variable, message(record))
    if settings.command:
        _call(settings.command, record)


def message(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a webhook: `text`, which Slack and its like show."""
    lines = [f"*nightshift {record['command']} {record['dataset']}*: {record['outcome']}"]
    if record["images_in"]:
        lines.append(
            f"{record['images_in']:,} images in = {record['labelled']:,} labelled + {record['quarantined']:,} quarantined"
        )
    lines.append(f"run {record['run_id']}, exit code {record['exit_code']}")
    return {"text": _escaped(printable("\n".join(lines)))}


def _escaped(text: str) -> str:
    """Return text without what Slack would take for a link or a mention."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _post(variable: str, document: Mapping[str, Any]) -> None:
    url = os.environ.get(variable, "")
    if not url.startswith(("https://", "http://")):
        say(f"nobody was notified: notify.webhook_variable: {variable} holds no URL")
        return
    try:
        asked = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=PATIENCE_S):
            return
    except urllib.error.HTTPError as error:
        said = f"it answers {error.code}"
        error.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        said = type(error).__name__  # the message may hold the URL, which is a secret
    say(f"nobody was notified by the webhook in {variable}: {said}")


def _call(command: tuple[str, ...], record: Mapping[str, Any]) -> None:
    try:
        done = subprocess.run(
            command, input=json.dumps(record), text=True, timeout=COMMAND_S, check=False, stdout=STDERR
        )  # our own stdout is data
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        say(f"notify.command: {command[0]} did not run ({type(error).__name__})")
        return
    if done.returncode:
        say(f"notify.command: {command[0]} ended with exit code {done.returncode}")
