"""What a test does without a program that not every machine has."""

import os
from typing import NoReturn

import pytest


def skip_or_fail(reason: str) -> NoReturn:
    """Skip with the reason; where NASH_REQUIRE_ALL is 1, fail with it."""
    if os.environ.get("NASH_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and NASH_REQUIRE_ALL is set")
    pytest.skip(reason)
