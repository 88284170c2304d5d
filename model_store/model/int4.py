"""`int4.safetensors`: a model's layers at four bits per weight, calibrated on task data, beside `model.safetensors`.

It holds two tensors for each matrix [O, I] of the layers, divided into G groups of 32 inputs:

    NAME.nibbles   U8 [O, G, 16]   byte b of a group: input b's weight in the low half, input b + 16's in the high half
    NAME.steps     F16 [O, G]      a weight is (nibble - 8) * step

Padding inputs have the nibble 8. Each matrix is the one that the engine multiplies with, including everything folded
into it; NAME is its place in the engine's layers, as in `decoder.3.cross.key`. Embeddings and the output matrix are not
included. The file's metadata contain the sha256 of the `model.safetensors` it was made from: beside other weights, it
would still answer as the original ones did.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_store.errors import InvalidRequestError
from model_store.model.model import INT4
from model_store.model.safetensors_header import TensorInfo, read_header, read_metadata

if TYPE_CHECKING:
    from model_store.model.spec import ModelSpec

GROUP = 32  # inputs that share a step
_MADE_FROM = "weights_sha256"  # the metadata key
_CHUNK_BYTES = 1 << 20


def int4_matrices(spec: "ModelSpec") -> Iterator[tuple[str, tuple[int, int]]]:
    """Name and shape [O, I] of every matrix that the file holds for a model of this shape."""
    for i, layer in enumerate(spec.encoder):
        yield from _attention(spec, f"encoder.{i}.attention", len(layer.heads))
        yield from _feed_forward(spec, f"encoder.{i}.ffn", layer.ffn)
    for i, decoder_layer in enumerate(spec.decoder):
        yield from _attention(spec, f"decoder.{i}.attention", len(decoder_layer.self_heads))
        yield from _attention(spec, f"decoder.{i}.cross", len(decoder_layer.cross_heads))
        yield from _feed_forward(spec, f"decoder.{i}.ffn", decoder_layer.ffn)


def _attention(spec: "ModelSpec", prefix: str, heads: int) -> Iterator[tuple[str, tuple[int, int]]]:
    if heads:
        inner = heads * spec.head_dim
        for name in ("query", "key", "value"):
            yield f"{prefix}.{name}", (inner, spec.width)
        yield f"{prefix}.out", (spec.width, inner)


def _feed_forward(spec: "ModelSpec", prefix: str, units: int) -> Iterator[tuple[str, tuple[int, int]]]:
    if units:
        for name in ("gate", "into") if spec.gated_ffn else ("into",):
            yield f"{prefix}.{name}", (units, spec.width)
        yield f"{prefix}.out", (spec.width, units)


def check_int4(spec: "ModelSpec", tensors: Mapping[str, TensorInfo]) -> None:
    """Compare the file's tensors with the model's shape.

    Raises:
        InvalidRequestError: a tensor is missing, unexpected, or has the wrong shape or dtype.
    """
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (outputs, inputs) in int4_matrices(spec):
        groups = -(-inputs // GROUP)
        wanted[f"{name}.nibbles"] = ("U8", (outputs, groups, GROUP // 2))
        wanted[f"{name}.steps"] = ("F16", (outputs, groups))
    for name in sorted(wanted.keys() ^ tensors.keys()):
        what = "lacks" if name in wanted else "has no place for"
        raise InvalidRequestError(f"{INT4} {what} the tensor {name[:120]!r}: calibrate the model again")
    for name, (dtype, shape) in wanted.items():
        found = tensors[name]
        if (found.dtype, found.shape) != (dtype, shape):
            raise InvalidRequestError(
                f"{INT4}: {name!r} is {found.dtype} {list(found.shape)}, the model's shape calls for "
                f"{dtype} {list(shape)}: calibrate the model again"
            )


def origin_metadata(weights: Sequence[Path]) -> dict[str, str]:
    """The file's metadata, which identify the weights it was made from: one file, or its shards one after the other."""
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return {_MADE_FROM: digest.hexdigest()}


def check_int4_file(spec: "ModelSpec", path: Path, weights: Sequence[Path]) -> None:
    """Compare the file with the model's shape and with the weights beside it.

    Raises:
        InvalidRequestError: it is incomplete, has another shape, or was made from other weights.
    """
    check_int4(spec, read_header(path))
    if read_metadata(path) != origin_metadata(weights):
        raise InvalidRequestError(
            f"{path.name} was made from another {weights[0].name}, which has changed since: calibrate the model again"
        )
