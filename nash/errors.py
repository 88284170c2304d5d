"""Errors of the offline side. Messages name the bad value and the remedy, and are shown to the user unchanged."""


class NashError(Exception):
    """The work failed for a reason the user can understand (exit code 1)."""


class RequestError(NashError):
    """The request itself is wrong: an unknown key, a bad row, an unsupported model (exit code 2)."""


class DiskFullError(NashError):
    """The disk has no room for the data to write."""
