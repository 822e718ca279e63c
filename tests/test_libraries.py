from importlib.metadata import version

from pipeline.libraries import library_versions


def test_library_that_is_not_installed_has_no_version():
    assert library_versions(["pyarrow", "no-such-library"]) == {"pyarrow": version("pyarrow"), "no-such-library": None}
