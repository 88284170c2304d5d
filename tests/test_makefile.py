"""What `make` says before it installs, with a pip that only writes down how it is called."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = """#!/bin/sh
echo "$*" >> pip.log
case "$*" in
    *--dry-run*) echo "WARNING: Location is ignored" >&2; exit {found} ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of empty sources, and a `python3` that makes a virtual environment of nothing but that pip."""
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "server/engine/native/operator/sets.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nmkdir -p .venv/bin && cp pip .venv/bin/pip\n")
    python.chmod(0o755)
    return tmp_path


def make(project: Path, *, torch_is_here: bool, **environment: str) -> tuple[str, list[str]]:
    """What is said, and how pip is called."""
    pip = project / "pip"
    pip.write_text(PIP.format(found=0 if torch_is_here else 1))
    pip.chmod(0o755)
    done = subprocess.run(
        ["make", "--no-print-directory", f"PYTHON={project}/python", ".venv/.installed"],
        cwd=project,
        env={key: value for key, value in os.environ.items() if key != "TORCH_INDEX_URL"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "", "pip's warnings bury what is said"
    return done.stdout, (project / "pip.log").read_text().splitlines()


def test_torch_that_pip_finds_here_is_just_installed(project: Path) -> None:
    said, calls = make(project, torch_is_here=True, TORCH_INDEX_URL="https://index.example")
    assert "without torch, which pip finds on this machine" in said
    assert [call for call in calls if "index-url" in call] == []
    assert "--no-index" in calls[0]
    assert calls[-1].endswith("install -qq -c constraints.txt -e .[datasets,demo,dev,loadtest,sweep]")


def test_the_index_that_is_named_is_used_for_torch_alone(project: Path) -> None:
    said, calls = make(project, torch_is_here=False, TORCH_INDEX_URL="https://index.example")
    assert "torch from TORCH_INDEX_URL" in said
    assert [call for call in calls if "index-url" in call] == [
        "--disable-pip-version-check install -qq --index-url https://index.example --no-deps -c constraints.txt torch"
    ]
    assert len(calls) == 3


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="elsewhere the default index has a torch without CUDA")
def test_gigabytes_are_told_before_they_come(project: Path) -> None:
    said, calls = make(project, torch_is_here=False)
    assert "several gigabytes" in said
    assert "set TORCH_INDEX_URL" in said
    assert len(calls) == 2


def test_a_missing_operator_is_told(project: Path) -> None:
    said, _ = make(project, torch_is_here=True)
    assert "without the native operator" in said
    (project / ".venv" / ".installed").unlink()
    (project / "server/engine/native/operator/stack_avx2.so").touch()
    said, _ = make(project, torch_is_here=True)
    assert "without the native operator" not in said
