"""`nash loadtest`: compare variants of a served model under load."""

import os
import signal
import sys

import typer

# Every option, --help too, is the load test's own to read.
PASS_EVERYTHING = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def command(context: typer.Context) -> None:
    """Put a server's variants under load and report how much faster each one answers."""
    # A process of its own: Locust replaces half of the standard library when it is imported.
    # Ctrl-C waits until that one can take it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "loadtest", *context.args])
