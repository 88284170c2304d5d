"""From a model directory to the neutral weights that every backend takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from model_store.spec import ModelSpec
from server.engine.bart_weights import read_bart
from server.engine.checkpoint import Tensors, open_checkpoint
from server.engine.int4_weights import map_layers, open_int4
from server.engine.network import Network
from server.engine.t5_weights import read_t5


@contextmanager
def open_network(
    directory: Path, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device, longest: int, int4: bool = False
) -> Iterator[Network]:
    """The weights of the model in `directory`, to be read while the context lasts.

    `dtype`: what the model will compute in; weights come in at least float32, because that is where they are folded.
    `longest`: how many positions to compute where any number can be.
    `int4`: the layers' matrices are those that were calibrated to four bits.

    Raises:
        LoadError: a file is missing or no safetensors file, or its tensors are not those of `spec`.
    """
    folded_dtype = torch.promote_types(dtype, torch.float32)
    with open_checkpoint(directory, spec, dtype=folded_dtype, device=device) as checkpoint:
        network = read_network(checkpoint, spec, longest=longest)
        if not int4:
            yield network
            return
        with open_int4(directory, spec) as calibrated:
            yield map_layers(network, calibrated)


def read_network(tensors: Tensors, spec: ModelSpec, *, longest: int) -> Network:
    """The network of a model of the shape `spec`, read from its tensors when they are wanted.

    `longest`: how many positions to compute where any number can be.
    """
    if spec.facts.layout == "t5":
        return read_t5(tensors, spec)
    return read_bart(tensors, spec, longest=longest)
