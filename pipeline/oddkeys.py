"""Names in an S3 folder that holds keys which obstore (as of 0.12) cannot spell, such as `a//b`: it then lists nothing at all.

pyarrow lists such a folder. It gives no etags, so what it finds is asked for one by one: slow, and needed for few folders.
"""

from pyarrow import fs

from pipeline.settings import StorageSettings


def names_in(url: str, settings: StorageSettings) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the objects directly in the S3 folder `url`; OSError when it is refused."""
    endpoint = (settings.endpoint or "").partition("://")
    store = fs.S3FileSystem(
        anonymous=settings.anonymous,
        region=settings.region,
        scheme=endpoint[0] or "https",
        endpoint_override=endpoint[2] or None,
        request_timeout=settings.timeout_s,
        connect_timeout=min(10, settings.timeout_s),
    )
    folder = url.partition("://")[2].rstrip("/")
    folders: list[str] = []
    files: list[str] = []
    for found in store.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        name = found.path.removeprefix(folder).strip("/")
        if name:
            (files if found.type == fs.FileType.File else folders).append(name)
    return sorted(folders), sorted(files)
