"""Four-bit weights from `int4.safetensors`; model_store/model/int4.py describes the file.

Axes: O outputs and I inputs of a matrix, G groups of inputs, B the 16 bytes of a group.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from model_store.errors import InvalidRequestError
from model_store.model.int4 import GROUP, check_int4_file
from model_store.model.model import INT4, Model
from server.engine.capabilities import check_calibrated
from server.engine.errors import LoadError
from server.engine.weights.network import AttentionWeights, FeedForwardWeights, Int4Weights, Linear, Network

_T = TypeVar("_T")


def map_matrices(layer: _T, change: Callable[[str, Linear], Linear], prefix: str) -> _T:
    """A layer with each matrix changed; matrices are named by their fields, as in `prefix.cross.key`."""
    changed: dict[str, Any] = {}
    for field in fields(layer):  # type: ignore[arg-type]
        value, name = getattr(layer, field.name), f"{prefix}.{field.name}"
        if isinstance(value, Linear) and value.weight_OI.numel():
            changed[field.name] = change(name, value)
        elif isinstance(value, AttentionWeights | FeedForwardWeights):
            changed[field.name] = map_matrices(value, change, name)
    return replace(layer, **changed)  # type: ignore[type-var]


def map_layers(network: Network, change: Callable[[str, Linear], Linear]) -> Network:
    """The network, with its layers' matrices changed as they are read."""
    encoder, decoder = network.encoder, network.decoder
    return replace(
        network,
        encoder=replace(
            encoder, layers=(map_matrices(each, change, f"encoder.{i}") for i, each in enumerate(encoder.layers))
        ),
        decoder=replace(
            decoder, layers=(map_matrices(each, change, f"decoder.{i}") for i, each in enumerate(decoder.layers))
        ),
    )


@contextmanager
def open_int4(model: Model) -> Iterator[Callable[[str, Linear], Linear]]:
    """A function that puts a model's calibrated weights into its matrices; valid within the context.

    Raises:
        LoadError: the model is not calibrated, or the file does not belong to this model.
    """
    path = model.folder / INT4
    check_calibrated(model)
    try:
        check_int4_file(model.spec, path, model.weight_files)
    except InvalidRequestError as error:
        raise LoadError(f"{model.folder}: {error}") from error
    with safe_open(path, framework="pt") as file:

        def calibrated(name: str, linear: Linear) -> Linear:
            # Copies: the file's tensors are views into it, and the file may change.
            nibbles, steps = (file.get_tensor(f"{name}.{kind}").clone() for kind in ("nibbles", "steps"))
            int4 = Int4Weights(nibbles_OGB=nibbles, steps_OG=steps)
            if not bool(steps.isfinite().all()):
                raise LoadError(f"{path}: the steps of {name!r} are not all finite: calibrate the model again")
            weight_OI = dequantized(int4, linear.weight_OI.shape[1])
            return replace(linear, weight_OI=weight_OI.to(linear.weight_OI), int4=int4)

        yield calibrated


def dequantized(int4: Int4Weights, inputs: int) -> Tensor:
    """The weights [O, I] in float32, which represents them exactly."""
    nibbles = int4.nibbles_OGB
    whole_OGI = torch.cat((nibbles & 15, nibbles >> 4), dim=2).float() - 8
    return (whole_OGI * int4.steps_OG.float()[:, :, None]).flatten(1)[:, :inputs]


def quantized(whole_OI: Tensor, steps_OG: Tensor) -> Int4Weights:
    """Four-bit weights from whole numbers -8 to 7 and float16 steps."""
    groups = steps_OG.shape[1]
    missing = groups * GROUP - whole_OI.shape[1]
    nibbles = torch.nn.functional.pad(whole_OI, (0, missing)).add(8).to(torch.uint8).view(-1, groups, 2, GROUP // 2)
    return Int4Weights(nibbles_OGB=nibbles[:, :, 0] | nibbles[:, :, 1] << 4, steps_OG=steps_OG)
