"""`python -m loadtest`, which `nash loadtest` executes."""

import importlib.util
import os
import signal
import sys

PACKAGES = ("locust", "matplotlib", "jinja2", "numpy")


def main() -> None:
    """Run the command line, after checking that its packages are installed."""
    # On Ctrl-C during the imports, exit at once: there is nothing to clean up yet.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `nash loadtest` holds it back until here
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        print(
            f'error: {", ".join(missing)} not installed: run pip install -c constraints.txt -e ".[loadtest]" '
            "in the project's folder",
            file=sys.stderr,
        )
        sys.exit(1)
    from loadtest.command import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
