"""Which version of this project runs."""

from importlib.metadata import PackageNotFoundError, version


def project_version() -> str:
    """The installed version; "source" where it runs from a source tree that was not installed."""
    try:
        return version("nash")
    except PackageNotFoundError:
        return "source"
