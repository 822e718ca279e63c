import pytest

from jobs.commandline import RECORDED, parse


def test_what_stands_behind_belongs_to_the_command_that_is_submitted():
    options = parse(
        [
            "submit",
            "train",
            "configs/demo.yaml",
            "--address",
            "http://h:1",
            "--json",
            "--",
            "--again",
            "--trial",
            "best",
        ]
    )
    assert (options.job, options.config, options.json) == ("train", "configs/demo.yaml", True)
    assert options.behind == ["--again", "--trial", "best"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "labels", "configs/demo.yaml"],
        ["submit", "train", "configs/demo.yaml", "--", "--nonsense"],
        ["nightly", "configs/demo.yaml", "--", "--dry-run"],
        ["submit", "train"],
        ["submit", "nightly", "configs/demo.yaml", "--", "--set", "store=/tmp/x"],
        ["submit", "nightly", "configs/demo.yaml", "--", "--date", "2026-11-24"],
        ["submit", "nightly", "configs/demo.yaml", "--", "--run-id", "x"],
        ["submit", "nightly", "configs/demo.yaml", "--", "--json"],
        ["submit", "label", "configs/demo.yaml", "--", "--image", "photo.jpg"],
    ],
)
def test_what_would_fail_there_fails_here(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    assert stopped.value.code == 2


def test_every_recorded_command_can_be_submitted():
    for command in RECORDED:
        assert parse(["submit", command, "configs/demo.yaml"]).job == command
