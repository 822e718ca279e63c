"""Reading the version of a file that was planned: a file that changed while it was read looks damaged, and is not."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import NotFoundError, SourceChangedError, StorageError
from pipeline.refusals import changed, damaged
from pipeline.storage import Storage, join


@contextmanager
def open_planned(folder: Storage, path: str, version: str) -> Iterator[BinaryIO]:
    """Open a file for reading; what goes wrong in the block is blamed on the file only if it is still that version.

    Raises
    ------
    SourceChangedError
        When the file is another version by then, or gone.
    StorageError
        When its rows are damaged, which the footer that was planned does not show.
    """
    with folder.open(path, version) as handle:
        try:
            yield handle
        except SourceChangedError:
            raise
        except (pa.ArrowException, OSError, StorageError) as error:
            location = join(folder.url, path)
            with suppress(NotFoundError):
                if folder.stat(path).version == version:
                    if isinstance(error, StorageError):
                        raise
                    raise damaged(location, error) from error
            raise changed(location) from error
