"""The environments of the peers: one folder each, because they want releases of the same packages that exclude another.

Only the standard library is imported here: the workers read this file in environments that lack everything of ours.
"""

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TORCH_INDEX = "TORCH_INDEX_URL"  # as for the image: an index of CPU wheels saves gigabytes
FINISHED = ".installed"  # what was installed, written last: what an interrupted run left is made anew


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a peer needs beside Python."""

    requirements: tuple[str, ...]
    built: tuple[str, ...] = ()  # from source: speed depends on what the compiler was told
    unwanted: tuple[str, ...] = ()  # comes with the rest and breaks it
    variables: Mapping[str, str] = field(default_factory=dict)  # while installing

    @property
    def fingerprint(self) -> str:
        """Changes whenever what would be installed does."""
        wanted = [*self.requirements, *self.built, *(f"without {name}" for name in self.unwanted)]
        return "\n".join([*wanted, *(f"{name}={value}" for name, value in self.variables.items())]) + "\n"


_LLAMA_CPP = ("llama-cpp-python==0.3.36",)
_LLAMA_CPP_NEEDS = ("gguf==0.19.0", "numpy==2.4.6", "safetensors==0.8.0")
# What a compiler makes of llama.cpp where it may use AVX2 and nothing above it.
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
        unwanted=("torchvision",),  # transformers imports it where it is, and it was built for another torch
    ),
    "onnxruntime": Environment(
        requirements=(
            "optimum-onnx[onnxruntime]==0.1.0",
            "optimum==2.1.0",
            "onnxruntime==1.32.0",
            "onnx-ir==1.1.0",  # what its int4 quantizer wants and does not name
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
    """The interpreter of an environment, whether or not it is there."""
    return folder / name / "bin" / "python"


def is_installed(folder: Path, name: str) -> bool:
    """Whether the environment is there, whole and of these versions."""
    finished = folder / name / FINISHED
    return finished.is_file() and finished.read_text(encoding="utf-8") == ENVIRONMENTS[name].fingerprint


def commands(folder: Path, name: str, torch_index: str = "") -> list[list[str]]:
    """What makes an environment, in order."""
    wanted = ENVIRONMENTS[name]
    python = str(python_of(folder, name))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    found = [[sys.executable, "-m", "venv", "--clear", str(folder / name)]]
    torch = [each for each in wanted.requirements if each.startswith("torch==")]
    if torch_index and torch:
        found.append([*pip, "install", "--quiet", "--index-url", torch_index, *torch])
    found.append([*pip, "install", "--quiet", *wanted.requirements])
    if wanted.built:
        # Not from pip's cache: it does not know what the compiler was told when the wheel in it was made.
        sources = [f"--no-binary={each.split('==')[0]}" for each in wanted.built]
        found.append([*pip, "install", "--quiet", "--no-cache-dir", *sources, *wanted.built])
    if wanted.unwanted:
        found.append([*pip, "uninstall", "--quiet", "--yes", *wanted.unwanted])
    return found


def install(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Make the environments that are missing or of other versions; what could not be made, with the reason."""
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
