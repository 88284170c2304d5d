"""The stage of the tests marked `gpu`, which run on no other machine: one part per file."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import Scale
from benchmarks.gpu.staged import NotPossibleError, Recorder, TimeUpError

_ROOT = Path(__file__).parents[2]
_MARK = "\n@pytest.mark.gpu\n"


def marked_tests(record: Recorder, scale: Scale) -> None:
    """Run them with pytest, in one process per file; in miniature only the first file, where all are skipped."""
    if find_spec("pytest") is None:
        raise NotPossibleError("pytest is not installed")
    files = find()
    for path in files[:1] if scale.device == "cpu" else files:
        record.part(str(path.relative_to(_ROOT)), partial(run_file, record, scale, path))


def find() -> list[Path]:
    """The files that have such tests."""
    return sorted(path for path in (_ROOT / "tests").rglob("test_*.py") if _MARK in path.read_text(encoding="utf-8"))


def run_file(record: Recorder, scale: Scale, path: Path) -> dict[str, Any]:
    """Run a file's tests and count them; `said` has the messages of failed and skipped tests.

    Raises:
        TimeUpError: the tests did not finish in the time that is left.
        RuntimeError: pytest wrote no report.
    """
    environment = dict(os.environ)
    if scale.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        command += ["-c", str(_ROOT / "pyproject.toml")]
        command += [f"--junitxml={report}", str(path)]
        try:
            done = subprocess.run(
                command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=record.left_s
            )
        except subprocess.TimeoutExpired:
            raise TimeUpError(f"the time was up within {path.name}") from None
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} and no report: {done.stdout[-1000:]}")
        counts = _read(report)
    record.line(f"{path.name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return counts


def _read(report: Path) -> dict[str, Any]:
    """Counts, and the message of each failed or skipped test."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "seconds": {}, "said": {}}
    for case in ET.parse(report).getroot().iter("testcase"):
        name = case.get("name", "")
        counts["seconds"][name] = float(case.get("time", 0))
        said = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
        if said is None:
            counts["passed"] += 1
            continue
        counts["skipped" if said.tag == "skipped" else "failed"] += 1
        counts["said"][name] = f"{said.get('message', '')}\n{said.text or ''}"[-2000:]
    return counts
