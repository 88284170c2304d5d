"""`nash loadtest`: compare variants of a served model under load."""

import os
import signal
import sys

import typer

# The load test reads every option itself, --help too.
PASS_EVERYTHING = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def command(context: typer.Context) -> None:
    """Put a server's variants under load and report how much faster each one answers."""
    # Run it as a program of its own, because Locust replaces half of the standard library when it is imported.
    # SIGINT stays blocked until that program can handle it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "loadtest", *context.args])
