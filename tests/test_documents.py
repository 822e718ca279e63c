import json
import random

import pytest

from pipeline import layout
from pipeline.documents import advance, digest, encode, newest, read_document
from pipeline.errors import AlreadyExistsError, NotFoundError, StorageError
from pipeline.layout import Generation
from pipeline.storage import FileStorage


@pytest.fixture
def store(tmp_path):
    return FileStorage(str(tmp_path))


def test_equal_documents_give_equal_bytes_and_keep_unicode():
    assert encode({"b": "ü", "a": 1}) == encode({"a": 1, "b": "ü"})
    assert "ü".encode() in encode({"b": "ü"})
    assert encode({}).endswith(b"\n")


def test_a_document_that_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="JSON"):
        encode({"loss": float("nan")})


def test_the_digest_is_of_what_is_said_not_of_the_order():
    values = [{"a": 1, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": "1", "b": [1, 2]}, {"a": 1}, [], "", None, 0]
    assert digest({"b": [1, 2], "a": 1}) == digest(values[0])
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1}) == "015abd7f5cc57a2d"  # ids of shards and fingerprints stand in stores: never another value
    assert digest({"a": 1}, 4) == "015a"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "not valid JSON"), (b'{"a": 1', "not valid JSON"), (b"\xff", "not valid JSON"), (b"[1]", "no JSON object")],
)
def test_a_damaged_document_is_named(store, data, words):
    store.write("a/b.json", data)
    with pytest.raises(StorageError, match=f"a/b.json.*{words}.*restore or delete it"):
        read_document(store, "a/b.json")


def test_a_document_that_is_not_there(store):
    with pytest.raises(NotFoundError):
        read_document(store, "a/b.json")


def test_the_highest_number_is_the_present_one(store):
    assert newest(store, "p") is None
    assert advance(store, "p", {"x": "first"}, 0) == 1
    for number in range(1, 12):  # 10 is more than 9, although "10" < "9"
        assert advance(store, "p", {"x": number}, number) == number + 1
    assert newest(store, "p") == (12, {"x": 11, "n": 12})
    assert read_document(store, "p/1.json") == {"x": "first", "n": 1}


def test_a_number_that_is_taken_is_refused(store):
    advance(store, "p", {"x": 1}, 0)
    with pytest.raises(AlreadyExistsError, match=r"p/1.json was written by another run"):
        advance(store, "p", {"x": 2}, 0)
    assert newest(store, "p") == (1, {"x": 1, "n": 1})


def test_other_files_beside_the_numbers_do_not_matter(store):
    store.write("p/notes.json", b"x")
    store.write("p/2.json.bak", b"x")
    store.write("pp/7.json", b"{}")
    assert newest(store, "p") is None
    advance(store, "p", {}, 0)
    assert newest(store, "p") == (1, {"n": 1})


def test_eight_writers_that_look_and_try_again_lose_nothing(store, run_together):
    def append(who: int) -> int:
        while True:
            found = newest(store, "p")
            try:
                return advance(store, "p", {"who": who}, found[0] if found else 0)
            except AlreadyExistsError:
                continue

    numbers = run_together(*[lambda i=i: append(i) for i in range(8)])
    assert sorted(numbers) == list(range(1, 9))
    assert [read_document(store, f"p/{number}.json")["who"] for number in numbers] == list(range(8))


def test_pointers_work_on_object_stores(s3):
    from pipeline.storage import open_storage

    store = open_storage(*s3)
    assert newest(store, "p") is None
    advance(store, "p", {"x": 1}, 0)
    with pytest.raises(AlreadyExistsError):
        advance(store, "p", {"x": 2}, 0)
    assert newest(store, "p") == (1, {"x": 1, "n": 1})


def test_documents_read_back_as_they_were(store):
    random.seed(0)
    for _ in range(20):
        document = {f"k{random.random()}": random.choice([1, 1.5, "ü", None, True, [1, {"a": []}]]) for _ in range(5)}
        store.write("d.json", encode(document))
        assert read_document(store, "d.json") == document == json.loads(encode(document))


def test_the_paths_of_a_store_are_the_documented_ones():
    generation = Generation("photos", "flowers", "0123")
    assert generation.name == "flowers@0123"
    assert [
        generation.labels("s", "r"), generation.quarantine("s", "r"), generation.ledger("s"), generation.ledger(),
        generation.copy("labels", "trimmed", "s-1"), generation.folder("quarantine"), layout.table("photos"),
        layout.plans("photos"), layout.published("photos"), layout.features("photos", "f", "s"),
        layout.training("k"), layout.bundle("flowers", "v"), layout.production("flowers"), layout.run("r"),
    ] == [
        "labels/photos/flowers@0123/s-2659ef.parquet", "quarantine/photos/flowers@0123/s-2659ef.parquet",
        "ledger/photos/flowers@0123/s.json", "ledger/photos/flowers@0123",
        "labels/photos/flowers@0123/trimmed/s-1.parquet", "quarantine/photos/flowers@0123", "labels/photos",
        "plans/photos", "published/photos", "features/photos/f/s.parquet",
        "trainings/k", "models/flowers/v", "models/flowers/production", "runs/r",
    ]  # fmt: skip
