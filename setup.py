"""The native operator: one plain shared library for each instruction set of server/engine/native/sets.toml.

They are loaded by ctypes and know nothing of Python, so one wheel serves every Python 3. What the compiler cannot make
is left out with one line that says so, and PyTorch does its work.

CXX           the compiler, c++ by default
NASH_TARGET   an architecture of sets.toml, this machine's by default. Who names it wants its operator: a set that
              cannot be made then ends the build. `NASH_TARGET=aarch64 CXX=aarch64-linux-gnu-g++ pip wheel --no-deps .`
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE = Path("server/engine/native")
SOURCE = NATIVE / "stack.cpp"
CODE = ["-std=c++20", "-O3", "-DNDEBUG", "-fPIC", "-pthread", "-shared"]
# torch's own wheels ask for this glibc, and with it for the standard library of its time.
LEAST_GLIBC = (2, 28)
LIBSTDCXX = (3, 4, 24)

TARGET = os.environ.get("NASH_TARGET", "")
ARCHITECTURE = TARGET or {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def instruction_sets() -> dict[str, list[str]]:
    """By the library's module name, the compiler's flags of each set of the target."""
    table = tomllib.loads((NATIVE / "sets.toml").read_text(encoding="utf-8"))["set"]
    if TARGET and TARGET not in (known := sorted({each["architecture"] for each in table})):
        raise SystemExit(f"NASH_TARGET={TARGET}: sets.toml has {', '.join(known)}")
    if platform.system() == "Windows":  # its compiler takes other flags and lacks the vector extensions
        return {}
    chosen = [each for each in table if each["architecture"] == ARCHITECTURE]
    return {f"{NATIVE.as_posix().replace('/', '.')}.stack_{s['name'].replace('-', '_')}": s["flags"] for s in chosen}


class BuildOperator(build_ext):
    compiler_command: list[str]

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = True  # a compiler a set, on all cores

    def run(self) -> None:
        # A library of another build must not pass for one of this.
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
        command = [*self.compiler_command, *CODE, *ext.extra_compile_args, str(SOURCE), "-o", str(library)]
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
        if TARGET:  # by default it is named after the Python that runs here
            self.build_base = f"build/{TARGET}"


class Wheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        libraries = sorted((Path(self.bdist_dir) / NATIVE).glob("stack_*.so"))
        if not libraries:
            return "py3", "none", "any"
        if TARGET or platform.system() == "Linux":
            return "py3", "none", f"{_linux_level(libraries)}_{ARCHITECTURE}"
        return "py3", "none", super().get_tag()[2]


def _linux_level(libraries: list[Path]) -> str:
    """manylinux_2_N by the symbol versions that the libraries ask for; linux where they ask for a newer libstdc++."""
    glibc, libstdcxx = LEAST_GLIBC, LIBSTDCXX
    for library in libraries:
        binary = library.read_bytes()
        glibc = max([glibc, *((int(a), int(b)) for a, b in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", binary))])
        asked = re.findall(rb"\0GLIBCXX_(\d+)\.(\d+)(?:\.(\d+))?", binary)
        libstdcxx = max([libstdcxx, *((int(a), int(b), int(c or 0)) for a, b, c in asked)])
    return f"manylinux_{glibc[0]}_{glibc[1]}" if libstdcxx == LIBSTDCXX else "linux"


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
