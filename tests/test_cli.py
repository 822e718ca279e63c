import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from jobs import cli
from jobs.cli import main
from jobs.commandline import COMMANDS, EPILOG, build_parser
from pipeline.errors import StorageError

SURFACE = {
    "demo": {"--folder", "--fresh"},
    "plan": {"--date"},
    "train": {"--again", "--trial"},
    "tune": set(),
    "evaluate": {"--split"},
    "robustness": {"--split"},
    "promote": set(),
    "rollback": set(),
    "approve": {"--run"},
    "reject": {"--run"},
    "history": {"--limit"},
    "label": {"--image", "--retry-quarantined", "--date", "--dry-run"},
    "nightly": {"--date", "--dry-run"},
    "labels": {"--to", "--limit"},
    "status": set(),
    "report": {"--run"},
    "models": {"--measure", "--plot"},
    "clean": {"--older-than", "--yes", "--models"},
    "doctor": {"--address"},
    "submit": {"--address", "--id", "--no-wait", "--date", "--env", "--with"},
    "manifest": {"--once", "--cronjob"},
    "jobs": {"--address"},
    "logs": {"--address", "--no-wait"},
    "stop": {"--address", "--no-wait"},
}
EVERYWHERE = {"-h", "--help", "--set", "--run-id", "--json"}


def subparsers():
    parser = build_parser()
    return next(action for action in parser._actions if action.dest == "command").choices


def test_the_surface_is_pinned():
    found = {
        name: {option for action in sub._actions for option in action.option_strings} - EVERYWHERE
        for name, sub in subparsers().items()
    }
    assert found == SURFACE
    assert set(COMMANDS) == set(SURFACE)


def test_common_options_may_stand_before_and_after_the_command():
    options = build_parser().parse_args(
        ["--set", "a.b=1", "--json", "plan", "x.yaml", "--set", "c.d=2", "--run-id", "r"]
    )
    assert options.before_overrides + options.overrides == ["a.b=1", "c.d=2"]
    assert options.before_json
    assert options.run_id == "r"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["labels", "/nowhere.yaml"], "cannot be read"),
        (["plan", "configs/demo.yaml", "--set", "labl.top_k=1"], "labl: unknown key; did you mean label?"),
        (["plan", "configs/demo.yaml", "--set", "label.topk=1"], "did you mean label.top_k?"),
        (["plan", "configs/demo.yaml", "--set", "nonsense"], "expected section.key=value"),
    ],
)
def test_usage_errors_exit_2_and_say_what_to_do(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_command_exits_2():
    with pytest.raises(SystemExit) as stopped:
        main(["lable", "x.yaml"])
    assert stopped.value.code == 2


def test_json_is_the_last_line_of_stdout_even_when_the_run_is_refused(tmp_path, capsys):
    arguments = [
        "plan",
        "configs/demo.yaml",
        "--set",
        f"store={tmp_path / 's'}",
        "--set",
        f"input.url={tmp_path / 'none'}",
    ]
    assert main([*arguments, "--json", "--run-id", "night-1"]) == 2
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (record["run_id"], record["exit_code"]) == ("night-1", 2)
    assert "does not exist" in record["outcome"]
    assert json.loads((tmp_path / "s/runs/night-1/run.json").read_text()) == record


def test_a_store_that_cannot_be_written_is_said(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    arguments = [
        "plan",
        "configs/demo.yaml",
        "--set",
        f"store={tmp_path / 'file'}",
        "--set",
        f"input.url={tmp_path / 'none'}",
    ]
    assert main(arguments) != 0
    assert capsys.readouterr().err


def test_python_m_jobs_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "jobs", "--help"], capture_output=True, text=True, check=True)
    assert "nightly" in done.stdout
    assert "exit codes" in done.stdout


def bad_images(night, number):
    import pyarrow as pa

    return pa.array([b"bad"] * number + [night.png(n) for n in range(10 - number)], pa.binary())


def complete(night, monkeypatch):
    return night.config()


def failed(night, monkeypatch):
    def fails(*_):
        raise StorageError("the store is full")

    monkeypatch.setattr("jobs.settle.publish", fails)
    return night.config()


def refused(night, monkeypatch):
    return night.config(model={"name": "unknown"})


def held_back(night, monkeypatch):
    night.write("b.parquet", range(10, 20), image=bad_images(night, 9))
    return night.config()


def nothing_new(night, monkeypatch):
    config = night.config(label={"require_new": True})
    night.whole(config, night.seal())
    return config


def stopped(night, monkeypatch):
    def stops(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.settle.publish", stops)
    return night.config()


@pytest.mark.parametrize("prepare", [complete, failed, refused, held_back, nothing_new, stopped])
def test_every_exit_code_of_the_help_page_is_what_a_run_ends_with(night, nightshift, local_ray, monkeypatch, prepare):
    documented = dict(re.findall(r"^  (\d)  (.*)$", EPILOG, re.MULTILINE))
    order = [complete, failed, refused, held_back, nothing_new, stopped]
    assert [int(code) for code in documented] == list(range(len(order)))
    night.write("a.parquet", range(10))
    night.seal()
    ended = nightshift(prepare(night, monkeypatch), "label")
    assert ended.code == order.index(prepare)
    assert ended.record["exit_code"] == ended.code
    stem = ("complete", "failed", "refused", "finished", "nothing new", "stopped early")[ended.code]
    assert ended.record["outcome"].startswith(stem)


@pytest.mark.parametrize("command", ["status", "labels", "report", "doctor"])
def test_ctrl_c_says_how_to_continue_also_where_no_record_is_kept(monkeypatch, capsys, command):
    def stops(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_handlers", lambda: {command: stops})
    assert main([command, "configs/demo.yaml"]) == 5
    assert capsys.readouterr().err == f"nightshift {command}: stopped early; the same command continues it\n"


def deliver(number):
    """Send this process a signal, and go on only when its handler had its turn."""
    os.kill(os.getpid(), number)
    time.sleep(0)  # bytecode boundaries are where handlers run


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def listened_to(request):
    """A signal's number that this process answers to, also where the tests run behind a shell's &."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_the_first_signal_stops_a_run_the_second_is_asked_to_wait_the_third_is_final(monkeypatch, capfd, listened_to):
    number, seen = listened_to, []

    def works(options):
        for _ in range(3):
            try:
                deliver(number)
                seen.append("waits")
            except KeyboardInterrupt:
                seen.append("stops")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_handlers", lambda: {"status": works})
    assert main(["status", "configs/demo.yaml"]) == 5
    assert seen == ["stops", "waits", "stops"]
    assert "stopping already" in capfd.readouterr().err
    assert signal.getsignal(number) is signal.default_int_handler, "whoever called gets his own answers back"


def test_a_signal_that_is_ignored_from_outside_stays_ignored(monkeypatch):
    def works(options):
        deliver(signal.SIGINT)
        return 0

    monkeypatch.setattr(cli, "_handlers", lambda: {"status": works})
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup and a shell's & do
    try:
        assert main(["status", "configs/demo.yaml"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_has_enough_is_no_error():
    program = (
        "import sys; from jobs import cli; cli._handlers = lambda: {'status': lambda o: print('x' * 10**6) or 0}; "
    )
    program += "sys.exit(cli.main(['status', 'configs/demo.yaml']))"
    job = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    job.stdout.read(10)
    job.stdout.close()
    said = job.stderr.read()
    job.stderr.close()
    assert (job.wait(), said) == (0, b"")


def test_json_says_why_a_config_is_refused(capsys):
    assert main(["status", "configs/demo.yaml", "--set", "labl.top_k=1", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["command"], answer["exit_code"]) == ("status", 2)
    assert "did you mean label" in answer["outcome"]
