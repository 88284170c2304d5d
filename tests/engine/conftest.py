import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from server.engine.machine.cpus import processor_features
from server.engine.native.operator.set_choice import VARIABLE, built, library_path
from server.engine.native.operator.sets import SETS, InstructionSet
from tests.missing_programs import skip_or_fail
from tests.tiny_models import build_tiny_t5

# Tied, relu; head widths that are not d_model / heads, once of whole registers; T5 v1.1; gated but tied.
SHAPES: dict[str, Callable[[Path], Path]] = {
    "t5": build_tiny_t5,
    "wide heads": partial(build_tiny_t5, head_dim=24),
    "heads of registers": partial(build_tiny_t5, head_dim=32, seed=5),
    "v1.1": partial(build_tiny_t5, gated=True, tied=False, head_dim=4),
    "gated, tied": partial(build_tiny_t5, gated=True, seed=3),
}
ROOT = Path(__file__).parents[2]
ARM_COMPILER = "aarch64-linux-gnu-g++"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The models are tiny: a second thread would only wait."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=SHAPES)
def dense_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dense model of each shape; read only."""
    return SHAPES[request.param](tmp_path_factory.mktemp("dense") / "model")


@pytest.fixture(scope="session")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny dense model; read only."""
    return build_tiny_t5(tmp_path_factory.mktemp("t5") / "model")


@pytest.fixture(params=[each for each in SETS if each.machine == platform.machine()], ids=lambda each: each.name)
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The operator on each set of instructions in turn; what this processor lacks is skipped, and counted so."""
    each: InstructionSet = request.param
    for feature in each.needs:
        if feature not in processor_features():
            pytest.skip(f"this processor has no {feature}")
    if not built(each):
        skip_or_fail(f"the operator was not built for {each.name}: install a C++ compiler and build again")
    monkeypatch.setenv(VARIABLE, each.name)
    return each.name


@pytest.fixture(scope="session")
def arm_libraries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The operator for each set of ARM's instructions: cross-built, or this machine's own.

    Without the slow tests it is not optimized: what the compiler takes for three sets is a tenth of the suite's time.
    """
    arm = [each for each in SETS if each.machine == "aarch64"]
    if platform.machine() == "aarch64":
        return {each.name: library_path(each) for each in arm}
    if shutil.which(ARM_COMPILER) is None:
        skip_or_fail(f"{ARM_COMPILER} is missing: install Debian's package g++-aarch64-linux-gnu")
    folder = tmp_path_factory.mktemp("aarch64")
    quick = "not slow" in request.config.getoption("markexpr")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", folder / "temp"],
        cwd=ROOT,
        env={**os.environ, "NASH_TARGET": "aarch64", "CXX": ARM_COMPILER, "NASH_CXXFLAGS": "-O0" if quick else ""},
        check=True,
    )
    return {each.name: folder / library_path(each).relative_to(ROOT) for each in arm}
