"""OpenVINO through optimum-intel. int8 and int4 compress the weights; OpenVINO chooses the type of the computation."""

from pathlib import Path

from benchmarks.peers.adapters import Generator
from benchmarks.peers.adapters.generation import Transformers

PACKAGES = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_BITS = {"int8": 8, "int4": 4}


def prepare(model: Path, made: Path, dtype: str) -> None:
    """Export, and compress the weights."""
    from optimum.intel import OVModelForSeq2SeqLM, OVWeightQuantizationConfig

    bits = _BITS.get(dtype)
    exported = OVModelForSeq2SeqLM.from_pretrained(
        model,
        export=True,
        compile=False,
        # Without a configuration, large models are compressed even if nobody asked for it.
        load_in_8bit=False if bits is None else None,
        quantization_config=None if bits is None else OVWeightQuantizationConfig(bits=bits),
    )
    exported.save_pretrained(made)


def load(model: Path, made: Path, dtype: str, threads: int) -> Generator:
    """Compile for one answer at a time."""
    import torch
    from optimum.intel import OVModelForSeq2SeqLM

    torch.set_num_threads(threads)
    wanted = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if dtype in _HINTS:
        wanted["INFERENCE_PRECISION_HINT"] = _HINTS[dtype]
    return Transformers(OVModelForSeq2SeqLM.from_pretrained(made, ov_config=wanted), threads)
