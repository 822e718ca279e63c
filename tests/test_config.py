import datetime
from datetime import date
from pathlib import Path

import pytest

from jobs.config import read_config
from pipeline.errors import ConfigError
from pipeline.settings import LabelSettings

MINIMAL = "store: ./store\ninput:\n  url: ./photos\n"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a config and read it: `config(text, *overrides)`."""
    monkeypatch.chdir(tmp_path)

    def read(text: str | bytes, *overrides: str):
        Path("c.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return read_config("c.yaml", overrides)

    return read


def refused(config, text, *overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        config(text, *overrides)
    return str(caught.value)


def test_defaults_fill_what_is_left_out_and_paths_become_absolute(config, tmp_path):
    read = config(MINIMAL + "  allowed_prefixes: [./more, 's3://bucket/x/']\nmodel:\n  weights: w.safetensors\n")
    assert read.store == str(tmp_path / "store")
    assert read.input.url == str(tmp_path / "photos")
    assert read.input.allowed_prefixes == (str(tmp_path / "more"), "s3://bucket/x")
    assert read.model.weights == str(tmp_path / "w.safetensors")
    assert read.model.classes is None
    assert read.label == LabelSettings()
    assert read.dataset == "photos"


@pytest.mark.parametrize("url", ["s3://bucket/store", "gs://bucket/x", "az://container/x", "/absolute"])
def test_urls_and_absolute_paths_stay_as_they_are(config, url):
    read = config(f"store: {url}\ninput: {{url: {url}-in}}\n")
    assert (read.store, read.input.url) == (url, f"{url}-in")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "labl:\n  top_k: 3\n", ["labl: unknown key", "did you mean label?"]),
        (MINIMAL + "label:\n  topk: 3\n", ["label.topk: unknown key", "did you mean label.top_k?"]),
        (
            MINIMAL + "model:\n  transforms:\n    crop: 3\n",
            ["model.transforms.crop: unknown key", "model.transforms.crop_px?"],
        ),
        (MINIMAL + "label:\n  zzz: 3\n", ["label.zzz: unknown key", "known here: top_k, columns"]),
        (MINIMAL + "label:\n  top_k: many\n", ["label.top_k: ", "valid integer", "'many'"]),
        (MINIMAL + "label:\n  top_k: 0\n", ["label.top_k: ", "greater than 0", "(it is 0)"]),
        (MINIMAL + "label: 3\n", ["label: ", "LabelSettings"]),
        (MINIMAL + "train:\n  mode: magic\n", ["train.mode: ", "'none', 'head', 'finetune' or 'scratch'", "'magic'"]),
        (MINIMAL + "train:\n  workers: 3\n", ["train: workers (3) must divide lanes (8)"]),
        (MINIMAL + "input2: {}\n", ["input2: unknown key", "did you mean input?"]),
        ("input:\n  url: x\n", ["store: is required"]),
        ("store:\ninput:\n  url: x\n", ["store: is required"]),
        ("store: x\ninput: {}\n", ["input.url: is required"]),
        ("store: x\ninput: {url: y}\n1: z\n", ["1: "]),
        (MINIMAL + "storage:\n  endpoint: localhost:9000\n", ["storage.endpoint: expected http://host:port"]),
        ("- store\n- input\n", ["expected a mapping with the keys store, input"]),
        ("just words", ["expected a mapping"]),
        ("", ["expected a mapping"]),
        ("store: [\n", ["not valid YAML"]),
        ("store: a\n---\nstore: b\n", ["not valid YAML"]),
        ("store: 2026-13-45\n", ["not valid YAML"]),
        (b"store: \xff\n", ["cannot be read", "utf-8"]),
        (MINIMAL + "seed: 1\nseed: 2\n", ["the key seed stands twice", "line 5"]),
        ("store: x\ninput:\n  url: a\n  url: b\n", ["the key url stands twice", "line 4"]),
        (MINIMAL + "? [a]\n: b\n", ["c.yaml: "]),
    ],
)
def test_every_message_names_file_and_key(config, text, words):
    message = refused(config, text)
    assert message.startswith("c.yaml: ")
    for word in words:
        assert word in message


def test_every_problem_has_its_own_line(config):
    lines = refused(config, MINIMAL + "label:\n  top_k: x\n  batch_size: -1\n").splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["c.yaml", "label.top_k"], ["c.yaml", "label.batch_size"]]


@pytest.mark.parametrize("path", ["nowhere.yaml", "."])
def test_a_config_that_cannot_be_opened_is_named(config, path):
    with pytest.raises(ConfigError, match=r"cannot be read.*give the path of a YAML config"):
        read_config(path)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("store: memory://x\ninput: {url: y}\n", "store"),
        ("store: x\ninput: {url: 'memory://y'}\n", "input.url"),
        (MINIMAL + "model: {weights: 'MEMORY://w'}\n", "model.weights"),
    ],
)
def test_memory_is_refused_because_workers_are_other_processes(config, text, key):
    message = refused(config, text)
    assert message.startswith(f"c.yaml: {key}: memory:// is for single-process tests only")


@pytest.mark.parametrize(
    ("store", "url"),
    [
        ("./data/store", "./data"),
        ("./data", "./data"),
        ("./store", "."),
        ("s3://b/x/store", "s3://b/x"),
        ("./a/../d/s", "./d"),
    ],
)
def test_a_store_inside_the_input_is_refused(config, store, url):
    with pytest.raises(ConfigError, match="lies inside"):
        config(f"store: {store}\ninput: {{url: {url}, name: x}}")


@pytest.mark.parametrize(
    ("store", "url"), [("./data-store", "./data"), ("s3://b/xy", "s3://b/x"), ("./d", "./d/images")]
)
def test_a_store_beside_or_around_the_input_is_fine(config, store, url):
    assert config(f"store: {store}\ninput: {{url: {url}}}").store


@pytest.mark.parametrize("url", ["..", "./x/.hidden"])
def test_an_input_whose_url_names_nothing_needs_a_name(config, url):
    with pytest.raises(ConfigError, match="is no name for a data set"):
        config(f"store: s3://elsewhere/store\ninput: {{url: {url}}}")


def test_unknown_schemes_are_refused_with_their_key(config):
    assert "c.yaml: store: unknown scheme ftp://" in refused(config, "store: ftp://host/x\ninput: {url: y}\n")


def test_an_empty_section_is_all_defaults(config):
    assert config(MINIMAL + "label:\n#  top_k: 3\n").label == LabelSettings()


def test_a_byte_order_mark_and_merge_keys_are_fine(config):
    read = config("\ufeff" + MINIMAL + "label: &l {batch_size: 7}\ntrain: {<<: *l, epochs: 2}\n")
    assert (read.label.batch_size, read.train.batch_size, read.train.epochs) == (7, 7, 2)


def test_overrides_come_after_the_file_and_the_last_wins(config):
    read = config(MINIMAL + "label:\n  top_k: 2\n", "label.top_k=3", "label.top_k=4", "seed=7", "input.url=./other")
    assert (read.label.top_k, read.seed, read.dataset) == (4, 7, "other")


def test_overrides_reach_nested_new_and_empty_sections_and_take_yaml_values(config):
    read = config(
        MINIMAL + "train:\n",
        "model.transforms.mean=[0.5, 0.25, 0.125]",
        "input.allowed_prefixes=[/a, /b]",
        "model.arguments={width_mult: 0.5}",
        "model.arguments.dropout=0.1",
        "train.learning_rate=1e-4",
        "input.label_column=a=b",
    )
    assert read.model.transforms.mean == (0.5, 0.25, 0.125)
    assert read.input.allowed_prefixes == ("/a", "/b")
    assert read.model.arguments == {"width_mult": 0.5, "dropout": 0.1}
    assert read.train.learning_rate == 1e-4
    assert read.input.label_column == "a=b"


def test_an_empty_override_unsets_what_may_be_unset(config):
    assert config(MINIMAL + "  label_column: label\n", "input.label_column=").input.label_column is None
    assert "label.top_k: " in refused(config, MINIMAL, "label.top_k=")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("label.top_k", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("input.url.deeper=3", "url is a value, not a section"),
        ("input.allowed_prefixes.0=/b", "allowed_prefixes is a value, not a section"),
        ("label.top_k=[", "the value is not valid YAML"),
        ("label={top_k: 1, top_k: 2}", "stands twice"),
        ("label.topk=1", "did you mean label.top_k?"),
        ("label..top_k=1", "label.: unknown key"),
        ("label=3", "label: "),
    ],
)
def test_overrides_that_fit_nowhere_are_refused(config, override, words):
    assert words in refused(config, MINIMAL + "  allowed_prefixes: [/a]\n", override)


def test_environment_variables_are_expanded_everywhere(config, monkeypatch):
    monkeypatch.setenv("NS_BUCKET", "photos")
    monkeypatch.setenv("NS_TOP", "3")
    text = "store: s3://${NS_BUCKET}/a-${NS_BUCKET}\ninput: {url: x, allowed_prefixes: ['s3://${NS_BUCKET}']}\n"
    read = config(text, "label.top_k=${NS_TOP}", "input.name=$NS_BUCKET")
    assert read.store == "s3://photos/a-photos"
    assert read.input.allowed_prefixes == ("s3://photos",)
    assert read.label.top_k == 3
    assert read.input.name == "$NS_BUCKET"  # only ${NAME} is special


def test_a_variable_that_is_not_set_is_named_with_its_key(config, monkeypatch):
    monkeypatch.delenv("NS_NOWHERE", raising=False)
    message = refused(config, "store: x\ninput:\n  url: y\n  allowed_prefixes: [/a, '${NS_NOWHERE}']\n")
    assert message.startswith("c.yaml: input.allowed_prefixes.1: ${NS_NOWHERE} is used")


def test_the_store_opens_from_the_config(config):
    store = config(MINIMAL).open_store()
    store.write("a/b", b"1")
    assert store.read("a/b") == b"1"


# The logical date.

DATED = "store: s\ninput: {url: 'in/day=${date}', name: in, filter: [[day, '=', '${date}']]}\n"


def test_the_date_stands_in_every_string(config):
    read = config(DATED, "date=2026-11-24")
    assert read.input.url.endswith("in/day=2026-11-24")
    assert read.input.filter == (("day", "=", "2026-11-24"),)
    assert str(read.date) == "2026-11-24"


def test_without_a_date_it_is_today_where_it_is_used_and_none_elsewhere(config):
    before = datetime.date.today()
    read = config(DATED)
    assert before <= read.date <= datetime.date.today()
    assert read.input.url.endswith(f"in/day={read.date}")
    assert config(MINIMAL).date is None


@pytest.mark.parametrize("value", ["20261124", "soon", "'2026-11-24T02:00'", "2026-13-01", "[1]"])
def test_what_is_no_date_is_refused(config, value):
    assert "date" in refused(config, MINIMAL, f"date={value}")


def test_a_wrong_date_on_the_command_line_exits_2(capsys):
    from jobs.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["nightly", "c.yaml", "--date", "24.11.2026"])
    assert stopped.value.code == 2
    assert "expected a date as YYYY-MM-DD" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "label: {columns: [price, uri]}",
            "label.columns: labels have a column 'uri' of their own; rename it in the input",
        ),
        ("label: {columns: [reason]}", "label.columns: labels have a column 'reason' of their own"),
        ("label: {columns: [embedding]}", "label.columns: labels have a column 'embedding' of their own"),
        ("label: {columns: [price, price]}", "label.columns: 'price' stands twice"),
    ],
)
def test_columns_that_cannot_stand_beside_ours_are_refused_at_once(config, line, words):
    assert words in refused(config, f"{MINIMAL}{line}\n")


@pytest.mark.parametrize(
    ("predicate", "words"),
    [
        ("[price, in, 3]", "in takes a list of values, not empty"),
        ("[price, not in, []]", "not in takes a list of values, not empty"),
        ("[price, =, [1, 2]]", "= takes one value"),
        ("[price, like, x]", "input.filter.0.1"),
        ("[price, >, 3]", "not valid YAML"),
        ("[price, !=, 3]", "operators stand in quotes: [[price, '>', 3]]"),
    ],
)
def test_predicates_that_say_nothing_are_refused(config, predicate, words):
    assert words in refused(config, MINIMAL, f"input.filter=[{predicate}]")


def test_predicates_keep_their_kinds_of_values(config):
    text = "input.filter=[[day, =, 2026-11-24], [n, in, [1, 2.5]], [ok, '!=', true], [name, '>=', '1']]"
    found = config(MINIMAL, text).input.filter
    assert found == (("day", "=", date(2026, 11, 24)), ("n", "in", (1, 2.5)), ("ok", "!=", True), ("name", ">=", "1"))
    assert [type(value) for _, _, value in found] == [date, tuple, bool, str]


# Weights and input sizes.


@pytest.mark.parametrize("name", ["DEFAULT", "ResNet50_Weights.IMAGENET1K_V2", "flowers@production", "flowers@0a1b2c"])
def test_names_of_weights_and_of_bundles_are_no_paths(config, name):
    assert config(MINIMAL, f"model.weights={name}").model.weights == name


@pytest.mark.parametrize("path", ["w.safetensors", "weights/w.safetensors"])
def test_files_of_weights_are_made_absolute(config, path):
    assert Path(config(MINIMAL, f"model.weights={path}").model.weights).is_absolute()


def test_an_input_size_that_is_given_twice_is_refused(config):
    assert config(MINIMAL, "input.size_px=160").input.size_px == 160
    message = refused(config, MINIMAL, "input.size_px=160", "model.transforms.crop_px=160")
    assert "input.size_px and model.transforms.crop_px both say" in message
