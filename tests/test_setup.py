"""How the package is built: one library an instruction set, and a wheel for every Python 3 of a platform."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.engine.native.operator.sets import SETS

ROOT = Path(__file__).parent.parent
MACHINES = sorted({each.machine for each in SETS})

# Makes no code, but files that ask for the versions of symbols that libraries ask for.
COMPILER = f"""#!{sys.executable}
import pathlib, sys
refused = [flag for flag in sys.argv if flag == "{{refuses}}"]
if refused:
    sys.exit(f"c++: error: unrecognized command-line option {{{{refused[0]}}}}")
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_bytes(b"ELF\\0GLIBC_2.17\\0{{versions}}\\0")
"""


@dataclass(frozen=True)
class Built:
    """What a build left."""

    code: int
    said: str
    wheel: str  # its name, or nothing
    files: list[str]

    @property
    def libraries(self) -> list[str]:
        return sorted(Path(name).name for name in self.files if name.endswith(".so"))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("nash", "server", "model_store", "loadtest"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return tmp_path


def compiler(folder: Path, *, versions: str = "", refuses: str = "nothing") -> str:
    path = folder / "compiler"
    path.write_text(COMPILER.format(versions=versions, refuses=refuses))
    path.chmod(0o755)
    return str(path)


def build(sources: Path, **environment: str) -> Built:
    """Build a wheel of the sources."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", "wheels"],
        cwd=sources,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wheels = list((sources / "wheels").glob("*.whl"))
    files = zipfile.ZipFile(wheels[0]).namelist() if wheels else []
    for wheel in wheels:
        wheel.unlink()
    return Built(done.returncode, done.stdout, wheels[0].name if wheels else "", files)


def of(machine: str) -> list[str]:
    return sorted(each.file_name for each in SETS if each.machine == machine)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_wheel_has_all_sets_of_its_machine(machine: str, sources: Path) -> None:
    built = build(sources, NASH_TARGET=machine, CXX=compiler(sources))
    assert built.code == 0, built.said
    assert built.libraries == of(machine)
    assert re.fullmatch(rf"nash-[0-9.]+-py3-none-manylinux_2_28_{machine}\.whl", built.wheel)
    data = {"nash/sweep/page.html.jinja", "loadtest/report/report.html.jinja", "server/api/page/index.html"}
    assert data <= set(built.files)
    assert [name for name in built.files if name.endswith((".cpp", ".h"))] == []


@pytest.mark.parametrize(
    ("versions", "platform"),
    [
        (r"GLIBC_2.36", "manylinux_2_36"),
        (r"GLIBC_2.4\0GLIBC_2.34\0GLIBCXX_3.4.22", "manylinux_2_34"),
        (r"GLIBC_2.29\0GLIBCXX_3.4.29", "manylinux_2_34"),
        (r"GLIBCXX_3.4.99", "linux"),
    ],
)
def test_the_tag_is_what_the_libraries_ask_for(versions: str, platform: str, sources: Path) -> None:
    built = build(sources, NASH_TARGET=MACHINES[-1], CXX=compiler(sources, versions=versions))
    assert f"-py3-none-{platform}_{MACHINES[-1]}.whl" in built.wheel, built.said


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is compiled")
def test_without_a_compiler_the_operator_is_left_out(sources: Path) -> None:
    old = sources / "server/engine/native/operator/stack_old.so"
    old.touch()
    built = build(sources, CXX="no-such-compiler")
    assert built.code == 0, built.said
    assert built.said.count("no C++ compiler no-such-compiler: the native operator is left out") == 1
    assert built.wheel.endswith("-py3-none-any.whl")
    assert built.libraries == [], "a library of another build"
    wanted = build(sources, CXX="no-such-compiler", NASH_TARGET=MACHINES[-1])
    assert (wanted.code, wanted.wheel) == (1, "")
    assert "no C++ compiler no-such-compiler" in wanted.said


@pytest.mark.skipif(os.uname().machine not in MACHINES, reason="there is no set for this machine")
def test_a_set_that_the_compiler_does_not_know_is_left_out(sources: Path) -> None:
    machine = os.uname().machine
    last = next(each for each in SETS if each.machine == machine)
    flag = next(flag for flag in last.compiler_flags if "bf16" in flag)
    built = build(sources, CXX=compiler(sources, refuses=flag))
    assert built.code == 0, built.said
    assert f"{last.file_name} is left out: c++: error: unrecognized command-line option {flag}" in built.said
    assert built.libraries == [name for name in of(machine) if name != last.file_name]
    wanted = build(sources, CXX=compiler(sources, refuses=flag), NASH_TARGET=machine)
    assert (wanted.code, wanted.wheel) == (1, "")


def test_a_target_without_sets_is_refused(sources: Path) -> None:
    built = build(sources, NASH_TARGET="vax", CXX=compiler(sources))
    assert (built.code, built.wheel) == (1, "")
    assert f"NASH_TARGET=vax: there are sets for {', '.join(MACHINES)}" in built.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("machine", "cxx"), [("x86_64", "c++"), ("aarch64", "aarch64-linux-gnu-g++")], ids=["x86_64", "aarch64"]
)
def test_the_real_compilers_make_every_set(machine: str, cxx: str, sources: Path) -> None:
    if machine not in MACHINES:
        pytest.skip(f"there is no set for {machine}")
    if shutil.which(cxx) is None or (cxx == "c++" and os.uname().machine != machine):
        pytest.skip(f"no compiler for {machine}: apt-get install g++-{machine}-linux-gnu")
    built = build(sources, NASH_TARGET=machine, CXX=cxx)
    assert built.code == 0, built.said
    assert built.libraries == of(machine)
    assert re.search(rf"-py3-none-manylinux_2_[0-9]+_{machine}\.whl", built.wheel)
