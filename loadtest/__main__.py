"""`python -m loadtest`: what `nash loadtest` becomes."""

import importlib.util
import sys

PACKAGES = ("locust", "matplotlib", "jinja2", "numpy")


def main() -> None:
    """Run the command line, once its packages are known to be there."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        print(
            f'error: {", ".join(missing)} not installed: run pip install -c constraints.txt -e ".[loadtest]" '
            "in the project's folder",
            file=sys.stderr,
        )
        sys.exit(1)
    from loadtest.command import run

    run()


if __name__ == "__main__":
    main()
