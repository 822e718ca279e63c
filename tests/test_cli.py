import json
import subprocess
import sys

import pytest

from jobs.cli import COMMANDS, build_parser, main

SURFACE = {
    "demo": {"--folder", "--fresh"},
    "plan": set(),
    "train": {"--again"},
    "evaluate": {"--split"},
    "label": {"--image", "--retry-quarantined"},
    "nightly": set(),
    "labels": {"--to", "--limit"},
    "status": set(),
    "report": {"--run"},
    "doctor": set(),
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
