"""The names of all commands and of all their flags, as their help pages tell them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.expected_files import Golden
from tests.golden.help_pages import commands_of, flags_of
from tests.golden.nash_process import ROOT, entry_point, environment, nash_each


def test_commands_and_flags(golden: Golden, tmp_path: Path) -> None:
    groups = [(), ("models",)]
    listing = nash_each([(*group, "--help") for group in groups], tmp_path)
    names = [(*group, name) for group, page in zip(groups, listing, strict=True) for name in commands_of(page.out)]
    assert ("models",) in names
    pages = nash_each([(*name, "--help") for name in names], tmp_path)
    assert {page.code for page in pages} == {0}
    flags = {" ".join(("nash", *name)): flags_of(page.out) for name, page in zip(names, pages, strict=True)}
    golden.check("flags", {"nash": flags_of(listing[0].out), **dict(sorted(flags.items()))})


def test_help_pages_are_read_in_both_forms() -> None:
    boxed = """
 Usage: nash serve [OPTIONS]

╭─ Options ─────────────────────────────────────╮
│ *  --model                 TEXT  What to serve │
│    --serve    --no-serve         With --model  │
│ --help        -h                 Show this.    │
│                                  --deep is no  │
╰───────────────────────────────────────────────╯
╭─ Commands ────────────────────────────────────╮
│ publish   Store a model.                       │
│ ls        List all.                            │
╰───────────────────────────────────────────────╯
"""
    plain = """Usage: nash serve [OPTIONS]

Options:
  --model TEXT          What to serve
  --serve / --no-serve  With --model
  -h, --help            Show this.
                        --deep is no flag

Commands:
  ls       List all.
  publish  Store a model.
"""
    for page in (boxed, plain):
        assert flags_of(page) == ["--help", "--model", "--no-serve", "--serve", "-h"]
        assert commands_of(page) == ["ls", "publish"]


@pytest.mark.parametrize("package", [entry_point()[0].split(".")[0], "server"])
def test_it_is_this_checkout_that_is_tested(package: str, tmp_path: Path) -> None:
    """Another one may be installed."""
    program = f"import sys; sys.argv = ['nash']; import {package}; print({package}.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(ROOT)
