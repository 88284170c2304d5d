"""Golden tests: what a user sees of the command line and of the server, and must go on to see.

They go through the `nash` command and through HTTP alone, so that they hold whatever becomes of the inside.
"""

import pytest

from tests.golden.expected_files import Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-update", action="store_true", help="write tests/golden/expected anew where it differs")


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Golden:
    # Where the whole suite runs, this file is read after the command line, and the flag is not known.
    return Golden(update=bool(request.config.getoption("golden_update", default=False)))
