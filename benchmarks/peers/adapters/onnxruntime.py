"""ONNX Runtime through optimum-onnx: one file each for the encoder, the first step and later steps."""

import shutil
from pathlib import Path

from benchmarks.peers.adapters import Generator
from benchmarks.peers.adapters.generation import Transformers

PACKAGES = ("onnxruntime", "optimum-onnx", "transformers", "torch")
_BLOCK = 32  # weights that share a scale in int4


def prepare(model: Path, made: Path, dtype: str) -> None:
    """Export without the merged decoder, whose branch costs time, and quantize each file."""
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    if dtype == "float32":
        ORTModelForSeq2SeqLM.from_pretrained(model, export=True, use_merged=False).save_pretrained(made)
        return
    plain = made.with_name(f"{made.name}-exported")
    try:
        prepare(model, plain, "float32")
        made.mkdir(parents=True, exist_ok=True)
        for file in plain.iterdir():
            if file.suffix == ".onnx":
                (_to_int8 if dtype == "int8" else _to_int4)(plain, file.name, made)
            elif not file.name.endswith(".onnx_data"):
                shutil.copy(file, made / file.name)
    finally:
        shutil.rmtree(plain, ignore_errors=True)


def _to_int8(plain: Path, name: str, made: Path) -> None:
    """Dynamic quantization: activations are quantized at run time."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    wanted = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(plain, file_name=name).quantize(
        save_dir=made, quantization_config=wanted, file_suffix=""
    )


def _to_int4(plain: Path, name: str, made: Path) -> None:
    """Quantize weights in blocks, with products in int8."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    wanted = DefaultWeightOnlyQuantConfig(block_size=_BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(plain / name)), algo_config=wanted)
    quantizer.process()
    quantizer.model.save_model_to_file(str(made / name), use_external_data_format=False)


def load(model: Path, made: Path, dtype: str, threads: int) -> Generator:
    """One session per file."""
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    torch.set_num_threads(threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return Transformers(ORTModelForSeq2SeqLM.from_pretrained(made, use_merged=False, session_options=options), threads)
