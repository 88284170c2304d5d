"""The native operator: one plain shared library for each instruction set of server/engine/native/operator/sets.py.

ctypes loads them and they do not depend on Python, so one wheel serves every Python 3. A library that the compiler
cannot build is left out with a one-line message, and PyTorch does its work.

CXX             the compiler, c++ by default
NASH_CXXFLAGS   added to its flags: -O0 builds in a third of the time, for code that is to be tried, not to be fast
NASH_TARGET     an architecture of sets.py, this machine's by default. If it is set, a library that cannot be built ends
                the build. `NASH_TARGET=aarch64 CXX=aarch64-linux-gnu-g++ pip wheel --no-deps .`
"""

import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("server/engine/native/operator")
SOURCE = NATIVE / "stack.cpp"
CODE = [
    "-std=c++20",
    "-O3",
    "-DNDEBUG",
    "-fPIC",
    "-pthread",
    "-shared",
    "-ffp-contract=off",  # round sums where the source says so, for any number of rows
    "-fvisibility=hidden",
]
LEAST_GLIBC = 28  # torch's own wheels need 2.28
# (x, y): systems with glibc 2.y have GLIBCXX_3.4.x, as in auditwheel's policies.
LIBSTDCXX = ((24, 28), (28, 31), (29, 34), (30, 35), (33, 39))

TARGET = os.environ.get("NASH_TARGET", "")
MACHINE = TARGET or platform.machine()
ON_LINUX = bool(TARGET) or platform.system() == "Linux"  # elsewhere nothing would load the library


def instruction_sets() -> dict[str, list[str]]:
    """The compiler flags of each of the target's instruction sets, by the library's module name."""
    table = runpy.run_path(str(NATIVE / "sets.py"))["SETS"]
    if TARGET and TARGET not in (known := sorted({each.machine for each in table})):
        raise SystemExit(f"NASH_TARGET={TARGET}: there are sets for {', '.join(known)}")
    package = NATIVE.as_posix().replace("/", ".")
    chosen = [each for each in table if ON_LINUX and each.machine == MACHINE]
    return {f"{package}.{each.file_name.removesuffix('.so')}": list(each.compiler_flags) for each in chosen}


class BuildOperator(build_ext):
    compiler_command: list[str]

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = True  # one compiler per set, on all cores

    def run(self) -> None:
        # A library from another build must not pass for one from this build.
        for folder in [Path(self.build_lib) / NATIVE, *([NATIVE] if self.inplace else [])]:
            for old in folder.glob("stack*.so"):
                old.unlink()
        self.compiler_command = shlex.split(os.environ.get("CXX", "c++"))
        if shutil.which(self.compiler_command[0]) is None:
            missing = f"no C++ compiler {self.compiler_command[0]}: the native operator is left out"
            if TARGET:
                raise CompileError(missing)
            self.warn(missing)
            self.extensions: list[Extension] = []
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        flags = [*CODE, *shlex.split(os.environ.get("NASH_CXXFLAGS", "")), *ext.extra_compile_args]
        command = [*self.compiler_command, *flags, str(SOURCE), "-o", str(library)]
        print(shlex.join(command), flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            library.unlink(missing_ok=True)
            lines = done.stderr.splitlines() or ["no reason given"]
            reason = next((line for line in lines if "error" in line), lines[0])
            raise CompileError(f"{library.name} is left out: {reason}")


class BuildFolder(build):
    def initialize_options(self) -> None:
        super().initialize_options()
        if TARGET:  # the default name contains the Python that runs here
            self.build_base = f"build/{TARGET}"


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        libraries = sorted((Path(self.bdist_dir) / NATIVE).glob("stack_*.so"))
        if not libraries:
            return "py3", "none", "any"
        return "py3", "none", f"{_linux_level(libraries)}_{MACHINE}"


def _linux_level(libraries: list[Path]) -> str:
    """manylinux_2_N by the symbol versions that the libraries need; linux if no N is known to have them."""
    binary = b"".join(library.read_bytes() for library in libraries)
    glibc = max([LEAST_GLIBC, *map(int, re.findall(rb"\0GLIBC_2\.(\d+)", binary))])
    libstdcxx = max([0, *map(int, re.findall(rb"\0GLIBCXX_3\.4\.(\d+)", binary))])
    level = next((level for has, level in LIBSTDCXX if has >= libstdcxx), None)
    return "linux" if level is None else f"manylinux_2_{max(glibc, level)}"


setup(
    ext_modules=[
        Extension(
            name,
            [str(SOURCE)],
            depends=[str(header) for header in sorted(NATIVE.glob("*.h"))],
            extra_compile_args=flags,
            optional=not TARGET,
        )
        for name, flags in instruction_sets().items()
    ],
    cmdclass={"bdist_wheel": Wheel, "build": BuildFolder, "build_ext": BuildOperator},
)
