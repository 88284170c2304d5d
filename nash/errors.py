"""The error tree of the offline side. Messages name the value and the remedy and are shown as they stand."""


class NashError(Exception):
    """The work failed for a reason that the user can understand (exit code 1)."""


class RequestError(NashError):
    """What was asked for is wrong: an unknown key, a bad row, an unsupported model (exit code 2)."""


class DiskFullError(NashError):
    """There is no room for what was to be written."""
