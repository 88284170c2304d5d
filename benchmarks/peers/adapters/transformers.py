"""transformers' own `generate`. int8 is PyTorch's dynamic quantization of all linear layers."""

import warnings
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import Generator
from benchmarks.peers.adapters.generation import Transformers

PACKAGES = ("transformers", "torch")


def prepare(model: Path, made: Path, dtype: str) -> None:
    """Nothing to do: transformers reads the model as it is."""


def load(model: Path, made: Path, dtype: str, threads: int) -> Generator:
    """The model in float32 or bfloat16, or quantized as it is loaded."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.set_num_threads(threads)
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    loaded = AutoModelForSeq2SeqLM.from_pretrained(model, dtype=kind).eval()
    if dtype == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, but its successor needs a package outside torch
            quantize: Any = torch.ao.quantization.quantize_dynamic
            loaded = quantize(loaded, {torch.nn.Linear}, dtype=torch.qint8)
    return Transformers(loaded, threads)
