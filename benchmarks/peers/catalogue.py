"""The peers, and what is compared with what."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.environments import ENVIRONMENTS, is_installed, python_of
from benchmarks.peers.protocol import PeerError

REFERENCE, ENGINE = "transformers", "engine"  # the peer whose float32 tokens are the reference, and ours
AGREES = 0.9  # of the reference tokens, up to each answer's first difference; a float32 peer below it is named
NATIVE = "native"
SHAPE_TITLES = {"t5-small": "T5-small", "t5-base": "T5-base", "marian": "Marian", "bart-base": "BART-base"}

# The variables that make each library use a lower instruction set than the processor has.
INSTRUCTION_SETS: Mapping[str, Mapping[str, str]] = {
    NATIVE: {},
    "avx2": {
        "NASH_CPU_ISA": "avx2",
        "CT2_FORCE_CPU_ISA": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A library that generates, or our engine."""

    name: str
    title: str
    dtypes: Mapping[str, str]  # the peer's own name for each, since peers compute them differently
    environment: str | None  # None: ours
    separate_builds: bool = False  # an environment for each instruction set
    exempt: str = ""  # in words, how it goes beyond a lower instruction set that is forced; empty if it does not

    @property
    def module(self) -> str:
        """Its adapter."""
        return f"benchmarks.peers.adapters.{self.name.replace('.', '_')}"

    def python(self, folder: Path, instruction_set: str) -> Path | None:
        """The interpreter of its environment; None for ours.

        Raises:
            PeerError: the environment is not installed.
        """
        if self.environment is None:
            return None
        name = self.environment
        if self.separate_builds and instruction_set != NATIVE:
            name = f"{name}-{instruction_set}"
        if not is_installed(folder, name):
            raise PeerError(f"not installed: python -m benchmarks.peers install {name} --into {folder}")
        return python_of(folder, name)


PEERS = (
    Peer(
        name=ENGINE,
        title="this engine",
        environment=None,
        dtypes={"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "int4"},
    ),
    Peer(
        name="ctranslate2",
        title="CTranslate2",
        environment="ctranslate2",
        dtypes={"float32": "float32", "bfloat16": "bfloat16", "int8": "int8"},
    ),
    Peer(
        name="openvino",
        title="OpenVINO",
        environment="openvino",
        dtypes={"float32": "f32", "bfloat16": "bf16", "int8": "int8 weights", "int4": "int4 weights"},
        exempt="holds its matrix products back, but not all of its elementwise kernels",
    ),
    Peer(
        name="onnxruntime",
        title="ONNX Runtime",
        environment="onnxruntime",
        dtypes={"float32": "float32", "int8": "dynamic int8", "int4": "int4 weights"},
        exempt="has no switch and uses all that the processor has",
    ),
    Peer(
        name="llama.cpp",
        title="llama.cpp",
        environment="llama.cpp",
        separate_builds=True,
        dtypes={"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"},
    ),
    Peer(
        name=REFERENCE,
        title="transformers",
        environment=None,
        dtypes={"float32": "float32", "bfloat16": "bfloat16", "int8": "PyTorch dynamic int8"},
    ),
)
NAMED = {peer.name: peer for peer in PEERS}
DTYPES = tuple(dict.fromkeys(dtype for peer in PEERS for dtype in peer.dtypes))
assert {peer.environment for peer in PEERS} - {None} <= set(ENVIRONMENTS)


def variables(instruction_set: str) -> dict[str, str]:
    """The environment variables of a worker: no network, and no messages at every start."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "GGML_NO_BACKTRACE": "1",  # then the last line that llama.cpp prints is the error
    }
    return {**os.environ, **quiet, **INSTRUCTION_SETS[instruction_set]}
