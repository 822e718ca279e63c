import pytest

from pipeline.calibration import NUM_PHOTOS, calibration_photos, keep_photos, photos_of
from pipeline.errors import AccessDeniedError
from pipeline.rows import Row
from pipeline.storage import FileStorage

PATH = "models/m/v/calibration.parquet"


@pytest.fixture
def store(tmp_path):
    return FileStorage(str(tmp_path))


def photos(kind: str, count: int) -> list[bytes]:
    return [f"{kind} {n}".encode() for n in range(count)]


def test_the_first_photos_are_kept_and_later_ones_are_not_looked_at(store):
    first = calibration_photos(store, "m", "v", lambda: photos("a", NUM_PHOTOS + 9))
    assert first == photos("a", NUM_PHOTOS)
    assert calibration_photos(store, "m", "v", lambda: pytest.fail("there are some")) == first


def test_supply_is_not_read_beyond_what_is_kept(store):
    supply = iter(photos("a", NUM_PHOTOS + 9))
    keep_photos(store, "m", "v", supply)
    assert len(list(supply)) >= 8


def test_labellers_that_start_together_share_one_set(store, run_together):
    got = run_together(*[lambda i=i: calibration_photos(store, "m", "v", lambda: photos(str(i), 5)) for i in range(8)])
    assert len({tuple(part) for part in got}) == 1


def test_no_photos_keep_nothing(store):
    assert calibration_photos(store, "m", "v", lambda: []) == []
    assert list(store.list()) == []


def test_a_store_that_takes_none_and_a_damaged_file_leave_the_own_ones(store):
    class ReadOnly(FileStorage):
        def create(self, path, data):
            raise AccessDeniedError("read-only")

    assert calibration_photos(ReadOnly(store.url), "m", "v", lambda: photos("a", 2)) == photos("a", 2)
    store.write(PATH, b"PAR1 damaged")
    assert calibration_photos(store, "m", "v", lambda: photos("b", 2)) == photos("b", 2)


def test_photos_are_the_rows_that_decode():
    rows = [[Row(n, "", "", n, data) for n, data in enumerate([b"good", None, b"bad"])], [Row(3, "", "", 3, b"good")]]
    assert list(photos_of(rows, lambda row: row.data == b"good")) == [b"good", b"good"]
