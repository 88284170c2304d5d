"""Stages of single operations: the machine's peak rates, the attention that it takes, and the parts of a step."""

import importlib.metadata
import math
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.gpu.attention_forms import FusedAttention, SumAttention
from benchmarks.gpu.device import cudnn_attention, on_device, recorded, release, repeat, seconds
from benchmarks.gpu.shapes import Scale
from benchmarks.gpu.staged import Recorder
from model_store.model.config import spec_of
from model_store.model.spec import ModelSpec
from server.engine.pytorch.attention import Attention, CachedAttention
from server.engine.pytorch.matrices.matrix import DenseMatrix

_MOST_COPIES = 64  # of the tensors that are read in turn
_PRODUCT_ROWS = (1, 8, 32, 64, 128)
_FORMS: dict[str, Callable[[Tensor, Tensor], Attention]] = {
    "product": CachedAttention,
    "sum": SumAttention,
    "fused": FusedAttention,
    "fused without cuDNN": FusedAttention,
}


def hardware(device: str) -> dict[str, Any]:
    """What the figures depend on besides the code: the GPU and the libraries; on a CPU only the libraries."""
    found: dict[str, Any] = {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda}
    if device == "cpu":
        return found
    properties = torch.cuda.get_device_properties(device)
    return found | {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def probe(record: Recorder, scale: Scale) -> None:
    """Query the hardware in a separate process: a process that has used CUDA cannot be forked."""
    if scale.device != "cpu" and not torch.cuda.is_available():
        record.note("hardware", None)
        return
    record.note("hardware", hardware(scale.device))


@on_device
def machine(record: Recorder, scale: Scale) -> None:
    """Versions, bandwidth, arithmetic, the cost of a launch, and the attention that PyTorch takes for our shapes."""
    record.note("versions", _versions())
    record.part("copy", partial(_copy, record, scale))
    record.part("product", partial(_product, record, scale))
    record.part("launch", partial(_launch, record, scale))
    record.part("attention chosen", partial(_chosen_attention, record, scale))


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("triton", "transformers", "tokenizers", "safetensors", "bitsandbytes"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    if shutil.which("nvidia-smi") is not None:
        command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit", "--format=csv"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        versions["nvidia-smi"] = asked.stdout.strip()
    return versions


def _copy(record: Recorder, scale: Scale) -> dict[str, float]:
    """Bytes per second, read plus written, of a copy larger than any cache; the best of a few runs."""
    release(scale.device)
    origin = torch.ones(scale.copy_bytes // 2, dtype=torch.bfloat16, device=scale.device)
    target = torch.empty_like(origin)
    best_s = min(seconds(scale.device, lambda: target.copy_(origin)) for _ in range(10))
    record.line(f"a copy moves {2 * scale.copy_bytes / best_s / 1e9:.0f} GB/s")
    return {"bytes_per_s": 2 * scale.copy_bytes / best_s}


def _product(record: Recorder, scale: Scale) -> dict[str, float]:
    size = scale.product_size
    left, right = (torch.randn(size, size, device=scale.device).to(getattr(torch, scale.dtype)) for _ in range(2))
    best_s = min(seconds(scale.device, lambda: torch.mm(left, right)) for _ in range(10))
    record.line(f"a product of matrices makes {2 * size**3 / best_s / 1e12:.1f} Tflop/s")
    return {"flop_per_s": 2 * size**3 / best_s}


def _launch(record: Recorder, scale: Scale) -> dict[str, float]:
    """Microseconds for each operation in a chain of the smallest ones: the least that a step's kernels cost."""
    number = torch.zeros(1, device=scale.device)

    def chain() -> None:
        for _ in range(scale.calls):
            number.add_(1)

    replay = recorded(scale.device, chain)
    costs = {}
    for name, work in (("eager_us", chain), ("graph_us", replay)):
        costs[name] = 1e6 * min(seconds(scale.device, work) for _ in range(5)) / scale.calls
    record.line(f"a smallest operation takes {costs['eager_us']:.2f} us, in a graph {costs['graph_us']:.2f}")
    return costs


def _chosen_attention(record: Recorder, scale: Scale) -> dict[str, str]:
    """The kernels that `scaled_dot_product_attention` chooses, by shape, for the encoder and for a step."""
    chosen = {}
    dtype, longest, batch = getattr(torch, scale.dtype), scale.source_tokens[1], max(scale.batches)
    for name in ("flan-t5-xl", "bart-large", "t5-base"):
        spec = spec_of(scale.shapes[name])
        heads, width = spec.num_heads, spec.head_dim
        bias_1HSS = torch.zeros(1, heads, longest, longest, dtype=dtype, device=scale.device)
        padding_B11S = torch.zeros(batch, 1, 1, longest, dtype=dtype, device=scale.device)
        biased = spec.facts.positions == "relative"
        masks = {
            "padded": bias_1HSS + padding_B11S if biased else padding_B11S,
            "not padded": bias_1HSS if biased else None,
        }
        for state, mask in masks.items():
            # In a projection's output layout: [B, S, H, 3, E].
            qkv = torch.zeros(batch, longest, heads, 3, width, dtype=dtype, device=scale.device)
            query, keys, values = qkv.permute(3, 0, 2, 1, 4).unbind(0)
            chosen[f"{name}, encoder, {state}"] = _choice(query, keys, values, mask)
        keys, values = torch.zeros(batch, heads, 2, longest, width, dtype=dtype, device=scale.device).unbind(2)
        query = torch.zeros(batch, heads, 1, width, dtype=dtype, device=scale.device)
        mask_step = torch.zeros(batch, heads, 1, longest, dtype=dtype, device=scale.device)
        chosen[f"{name}, step"] = _choice(query, keys, values, mask_step)
        del masks, bias_1HSS
    for shape, choice in chosen.items():
        record.line(f"{shape}: {choice}")
    return chosen


def _choice(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> str:
    number = torch._fused_sdp_choice(query, keys, values, mask, 0.0, False, scale=1.0)
    return str(SDPBackend(number).name) if number >= 0 else "none"


@on_device
def parts_of_steps(record: Recorder, scale: Scale) -> None:
    """Attention in each form, and products with few rows, in graphs and from cold memory."""
    xl, base = (spec_of(scale.shapes[name]) for name in ("flan-t5-xl", "t5-base"))
    cases = {
        f"{kind}, {name}, batch {batch}": (spec, batch, positions)
        for name, spec, batches in (("t5-base", base, (1,)), ("flan-t5-xl", xl, scale.batches))
        for batch in batches
        for kind, positions in (("cross", scale.source_tokens[1]), ("self", scale.new_tokens))
    }
    for name, (spec, batch, positions) in cases.items():
        works = {f"{name}, {form}": partial(_attention, record, scale, f"{name}, {form}", form) for form in _FORMS}
        record.parts(works, partial(_make_attention, scale, spec, batch, positions))
    for model, spec in (("t5-base", base), ("flan-t5-xl", xl)):
        for matrix, (outputs, inputs) in _matrices(spec).items():
            works = {
                f"{model}, {matrix}, {rows} rows": partial(
                    _matrix, record, scale, f"{model}, {matrix}, {rows} rows", rows
                )
                for rows in _PRODUCT_ROWS
            }
            record.parts(works, partial(_make_matrices, scale, outputs, inputs))


def _matrices(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a decoder layer's matrices and of the logits' matrix."""
    inner = spec.num_heads * spec.head_dim
    matrices = {
        "query, key, value": (3 * inner, spec.d_model),
        "attention out": (spec.d_model, inner),
        "feed-forward in": (spec.d_ff, spec.d_model),
        "feed-forward out": (spec.d_model, spec.d_ff),
        "logits": (spec.target_vocab_size, spec.d_model),
    }
    if spec.gated_ffn:
        matrices["feed-forward in and gate as one"] = (2 * spec.d_ff, spec.d_model)
    return matrices


def _copies(scale: Scale, size_bytes: int) -> int:
    return min(_MOST_COPIES, max(1, math.ceil(scale.cold_bytes / size_bytes)))


def _make_attention(scale: Scale, spec: ModelSpec, batch: int, positions: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Caches of several layers, a query and a mask."""
    release(scale.device)
    heads, width, dtype = spec.num_heads, spec.head_dim, getattr(torch, scale.dtype)
    layers = _copies(scale, 2 * batch * heads * positions * width * dtype.itemsize)
    caches = [torch.randn(batch, heads, 2, positions, width, device=scale.device).to(dtype) for _ in range(layers)]
    query = torch.randn(batch * heads, 1, width, device=scale.device).to(dtype)
    return caches, query, torch.zeros(batch * heads, 1, positions, dtype=dtype, device=scale.device)


@torch.inference_mode()
def _attention(
    record: Recorder, scale: Scale, name: str, form: str, made: tuple[list[Tensor], Tensor, Tensor]
) -> dict[str, float]:
    caches, query, mask = made
    layers = [_FORMS[form](*cache.unbind(2)) for cache in caches]

    def work() -> None:
        for layer in layers:
            layer(query, mask)

    with cudnn_attention(form != "fused without cuDNN"):
        return _speed(record, scale, name, work, sum(cache.nbytes for cache in caches), len(layers))


def _make_matrices(scale: Scale, outputs: int, inputs: int) -> list[Tensor]:
    release(scale.device)
    dtype = getattr(torch, scale.dtype)
    copies = _copies(scale, outputs * inputs * dtype.itemsize)
    return [torch.randn(outputs, inputs, device=scale.device).to(dtype) for _ in range(copies)]


@torch.inference_mode()
def _matrix(record: Recorder, scale: Scale, name: str, rows: int, weights: list[Tensor]) -> dict[str, float]:
    matrices = [DenseMatrix(weight, None) for weight in weights]
    x = torch.randn(rows, weights[0].shape[1], device=scale.device).to(weights[0].dtype)

    def work() -> None:
        for matrix in matrices:
            matrix.apply(x)

    return _speed(record, scale, name, work, sum(weight.nbytes for weight in weights), len(matrices))


def _speed(
    record: Recorder, scale: Scale, name: str, work: Callable[[], None], size_bytes: int, calls: int
) -> dict[str, float]:
    """Microseconds per call, and bytes per second, of work that reads `size_bytes` in `calls` calls."""
    replay = recorded(scale.device, work)
    replay()
    best_s = min(repeat(record, scale, lambda: seconds(scale.device, replay)))
    record.line(f"{name}: {1e6 * best_s / calls:.1f} us, {size_bytes / best_s / 1e9:.0f} GB/s")
    return {"us": 1e6 * best_s / calls, "bytes_per_s": size_bytes / best_s}
