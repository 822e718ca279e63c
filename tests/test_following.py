import io
import json
import re

import pytest
from ray import job_submission

from cluster.submission import Job
from jobs import following as module
from jobs.following import Log, conclude, exit_code, is_record, show_lines, watch
from pipeline.errors import TransientError

RECORD = json.dumps({"run_id": "night-1", "exit_code": 0})


def job(status, code=None, message=""):
    return Job("night", status, code, message, 1.0, 2.0, {})


class Api:
    """A job whose log comes in pieces; an exception among them is raised."""

    address = "http://head:8265"

    def __init__(self, pieces, ended):
        self._pieces, self._ended = pieces, ended

    def follow(self, job_id, show, said):
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            show(piece)
        return self._ended


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (job("SUCCEEDED", 0), 0),
        (job("FAILED", 3), 3),
        (job("FAILED", 4), 4),
        (job("FAILED", 5), 5),
        (job("FAILED", 127), 1),
        (job("FAILED", -9), 1),
        (job("FAILED", None), 1),
        (job("STOPPED", None), 5),
        (job("SUCCEEDED", None), 0),
    ],
)
def test_the_exit_code_is_the_commands_own(ended, expected):
    assert exit_code(ended) == expected


def test_statuses_are_rays():
    assert {status.value for status in job_submission.JobStatus} == {
        "PENDING",
        "RUNNING",
        "STOPPED",
        "SUCCEEDED",
        "FAILED",
    }


def test_the_log_is_stdout_and_with_json_the_record_alone(capsys):
    pieces = ["first\nsec", "ond\n", RECORD + "\n", "last without an end"]
    assert watch(Api(pieces, job("SUCCEEDED", 0)), "night", False) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("first\nsecond\nlast without an end\n", "")
    assert watch(Api(pieces, job("FAILED", 3)), "night", True) == 3
    said = capsys.readouterr()
    assert said.out == RECORD + "\n"
    assert said.err == "first\nsecond\nlast without an end\njob night: failed, exit code 3\n"


def test_a_job_that_never_ran_says_why(capsys):
    assert conclude(job("FAILED", None, "runtime env failed\nTraceback"), False, None) == 1
    assert capsys.readouterr().err == "job night: failed, exit code 1: runtime env failed\n"


def test_ctrl_c_leaves_the_job_and_says_how_to_go_on(capsys):
    assert watch(Api(["x\n", KeyboardInterrupt()], job("RUNNING")), "night", False) == 5
    said = capsys.readouterr().err
    assert "job night goes on: `nightshift logs night --address http://head:8265` follows it" in said
    assert "`nightshift stop night --address http://head:8265` ends it" in said


def test_a_dashboard_that_is_gone_says_how_to_go_on(capsys):
    assert watch(Api([TransientError("nobody answers")], job("RUNNING")), "night", False) == 1
    assert "nobody answers; job night may go on: `nightshift logs night" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (RECORD, True),
        (json.dumps({"command": "plan", "exit_code": 2}), True),
        (json.dumps({"machine": {}}), True),
        (json.dumps({"dry_run": True}), True),
        ('{"run_id": broken', False),
        ('{"other": 1}', False),
        ("label: 3 of 4 images", False),
    ],
)
def test_records_are_told_from_other_lines(line, expected):
    assert is_record(line) == expected


def test_a_log_that_is_not_followed_is_printed_whole():
    stream = io.StringIO()
    assert show_lines(["a\nb\n" + RECORD], stream) == RECORD
    assert stream.getvalue() == "a\nb\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_progress_is_drawn_in_place_and_lines_stay(monkeypatch):
    monkeypatch.setattr(module.sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    log, stream = None, Terminal()
    log = Log(stream)
    with log.shown() as live:
        log.feed("plan      4 files in 0.9 s, 4.4/s\nlabel: waiting for workers, 0:10\n")
        assert live._picture().plain == "label     waiting for workers, 0:10"
        log.feed("label: 1,000 of 4,000 images, 0:12 left, 104/s\n")
        drawn = live._picture().plain
        assert re.fullmatch(r"label     ━{30} 1,000 of 4,000 images, 0:12 left, 104/s", drawn)
        log.feed("warning: something\nlabel     4,000 images in 40.0 s, 100/s\n")
        assert live._picture().plain == "", "the stage is over"
        log.end()
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    for line in ("plan      4 files in 0.9 s, 4.4/s", "warning: something", "label     4,000 images in 40.0 s, 100/s"):
        assert line in [each.strip() for each in lines]


@pytest.mark.parametrize(
    "pieces", [[KeyboardInterrupt()], [TransientError("gone")], ["Killed\n"]]
)  # fmt: skip
def test_with_json_the_last_line_of_stdout_is_always_a_document(capsys, pieces):
    code = watch(Api(pieces, job("FAILED", -9, "died")), "night", True)
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["command"], answer["job"], answer["exit_code"]) == ("submit", "night", code)
    assert "job night" in answer["outcome"]


@pytest.mark.parametrize(
    "line",
    ["tried again: 3 x timeout", "warning: 5 files skipped", "engine: 2 of 3 photos", "engine: openvino fp32 on CPU, 3/s",
     "report: s3://x/1 of 2", "job night: failed, exit code 1"],
)  # fmt: skip
def test_other_lines_are_not_taken_for_progress(line):
    assert not module._PROGRESS.fullmatch(line)


def test_lines_are_printed_as_they_are(monkeypatch):
    monkeypatch.setattr(module.sys, "stderr", Terminal())
    stream = Terminal()
    log = Log(stream)
    with log.shown():
        log.feed("ratio 3:100:4 and :warning: [bold]s3://b/:a:[/bold]\n")
    assert "ratio 3:100:4 and :warning: [bold]s3://b/:a:[/bold]" in stream.getvalue()


def test_every_line_that_a_stage_says_is_known_as_progress():
    from jobs.console import Progress

    for total, done in ((None, 0), (10, 0), (10, 3), (None, 3), (4_000, 1_500)):
        progress = Progress("label", total, "images")
        progress.advance(done)
        progress.remark = "waiting: storage 40%" if done == 3 else ""
        assert module._PROGRESS.fullmatch(f"label: {progress.line}"), progress.line
