"""The error hierarchy of the load test. Messages name the value and the remedy, and are shown unchanged."""


class LoadtestError(Exception):
    """The run failed for a reason that the user can understand (exit code 1)."""


class InterruptedRunError(LoadtestError):
    """The user ended the run before there was anything to report (exit code 130)."""


class UsageError(LoadtestError):
    """The request is wrong: a bad row, an unknown REF, a folder that is in use (exit code 2)."""
