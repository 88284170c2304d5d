"""The version of this project that is running."""

from importlib.metadata import PackageNotFoundError, version


def project_version() -> str:
    """The installed version, or "source" if the project runs from a source tree that is not installed."""
    try:
        return version("nash")
    except PackageNotFoundError:
        return "source"
