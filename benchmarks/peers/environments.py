"""The environments of the peers: one folder each, because they need incompatible releases of the same packages.

Only the standard library is imported here: the workers read this file in environments without our packages.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TORCH_INDEX = "TORCH_INDEX_URL"  # as for the image: an index of CPU wheels saves gigabytes
FINISHED = ".installed"  # lists what was installed; written last, so that an interrupted installation is redone


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a peer needs besides Python."""

    requirements: tuple[str, ...]
    built: tuple[str, ...] = ()  # from source, because speed depends on the compiler options
    unwanted: tuple[str, ...] = ()  # installed with the rest, but breaks it
    variables: Mapping[str, str] = field(default_factory=dict)  # while installing

    @property
    def fingerprint(self) -> str:
        """Changes whenever the packages to install change."""
        wanted = [*self.requirements, *self.built, *(f"without {name}" for name in self.unwanted)]
        return "\n".join([*wanted, *(f"{name}={value}" for name, value in self.variables.items())]) + "\n"


_LLAMA_CPP = ("llama-cpp-python==0.3.36",)
_LLAMA_CPP_NEEDS = ("gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0")
# CMake options that build llama.cpp with AVX2 and nothing above it.
_AVX2 = (
    "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
    "-DGGML_AVX_VNNI=OFF -DGGML_AVX512=OFF -DGGML_AVX512_VBMI=OFF -DGGML_AVX512_VNNI=OFF -DGGML_AVX512_BF16=OFF"
)

ENVIRONMENTS = {
    "ctranslate2": Environment(requirements=("ctranslate2==4.8.5", "torch==2.13.0", "transformers==5.23.0")),
    "openvino": Environment(
        requirements=(
            "optimum-intel==2.2.0",
            "optimum==2.3.0",
            "openvino==2026.4.1",
            "nncf==3.4.0",
            "torch==2.13.0",
            "transformers==4.57.6",  # the newest from which optimum-intel exports Marian
        ),
        unwanted=("torchvision",),  # transformers imports it if it is there, but it was built for another torch
    ),
    "onnxruntime": Environment(
        requirements=(
            "optimum-onnx[onnxruntime]==0.1.0",
            "optimum==2.1.0",
            "onnxruntime==1.32.0",
            "onnx-ir==1.1.0",  # its int4 quantizer needs this but does not declare it
            "torch==2.13.0",
            "transformers==4.57.6",
        ),
    ),
    "llama.cpp": Environment(
        requirements=_LLAMA_CPP_NEEDS, built=_LLAMA_CPP, variables={"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
    ),
    "llama.cpp-avx2": Environment(requirements=_LLAMA_CPP_NEEDS, built=_LLAMA_CPP, variables={"CMAKE_ARGS": _AVX2}),
}


def python_of(folder: Path, name: str) -> Path:
    """The path of an environment's interpreter, whether or not it exists."""
    return folder / name / "bin" / "python"


def is_installed(folder: Path, name: str) -> bool:
    """Whether the environment is installed completely and in these versions."""
    finished = folder / name / FINISHED
    return finished.is_file() and finished.read_text(encoding="utf-8") == ENVIRONMENTS[name].fingerprint


def commands(folder: Path, name: str, torch_index: str = "") -> list[list[str]]:
    """The commands that make an environment, in order."""
    wanted = ENVIRONMENTS[name]
    python = str(python_of(folder, name))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    found = [[sys.executable, "-m", "venv", "--clear", str(folder / name)]]
    torch = [each for each in wanted.requirements if each.startswith("torch==")]
    if torch_index and torch:
        found.append([*pip, "install", "--quiet", "--index-url", torch_index, *torch])
    found.append([*pip, "install", "--quiet", *wanted.requirements])
    if wanted.built:
        # Not from pip's cache: it does not record the compiler options with which a wheel was built.
        sources = [f"--no-binary={each.split('==')[0]}" for each in wanted.built]
        found.append([*pip, "install", "--quiet", "--no-cache-dir", *sources, *wanted.built])
    if wanted.unwanted:
        found.append([*pip, "uninstall", "--quiet", "--yes", *wanted.unwanted])
    return found


def install(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Make the environments that are missing or have other versions; return the failed ones with their reasons."""
    failed = {}
    for name in names:
        if is_installed(folder, name):
            print(f"{name}: there already", flush=True)
            continue
        print(f"{name}: {' '.join([*ENVIRONMENTS[name].requirements, *ENVIRONMENTS[name].built])}", flush=True)
        variables = {**os.environ, **ENVIRONMENTS[name].variables}
        for command in commands(folder, name, os.environ.get(TORCH_INDEX, "")):
            done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                failed[name] = _last_line(done.stderr or done.stdout)
                break
        else:
            (folder / name / FINISHED).write_text(ENVIRONMENTS[name].fingerprint, encoding="utf-8")
    return failed


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
