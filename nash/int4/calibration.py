"""Four-bit quantization: calibrate a model on task data and write the `int4.safetensors` that dtype `int4` loads.

The engine's own PyTorch backend runs the float32 model over the data once, teacher-forced, and accumulates the Gram
matrix of the inputs of every matrix in the layers. Then each matrix is rounded by itself. So the rounded matrices are
the ones that the engine multiplies with, including the norm weights and the scales that it folds into them.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

from model_store.model.int4 import origin_metadata
from model_store.model.model import INT4, Model
from model_store.version.source import check_publishable, list_files
from nash.data.examples import TokenizedPairs
from nash.data.rows import Rows, rows_at
from nash.errors import NashError
from nash.int4.rounding import round_by_data, round_nearest
from nash.modeling.folders import load_tokenizer
from nash.run.disk import full_disk_named
from nash.run.progress import Stage, Watch
from server.engine.backend import Feed
from server.engine.interface.config import EngineConfig
from server.engine.pytorch.backend import LENGTH_BUCKET, SOURCE_BUCKET, TorchBackend
from server.engine.pytorch.matrices.matrix import Matrix
from server.engine.pytorch.model import BiasAndNorm
from server.engine.pytorch.model_builder import TorchModel, build_model
from server.engine.weights.int4 import map_layers, quantized
from server.engine.weights.network import Linear, Network
from server.engine.weights.reading import open_network

# How much data to use: 512 words of g2p are too few, 2,048 are enough (docs/log.md, four bits a weight).
_ENOUGH_TOKENS = 2**17  # of sources and targets
_MOST_ROWS = 8192
# PyTorch's decoder gathers the cache once for every row of a step, so a step should not have too many rows.
_SLOTS, _BATCH_TOKENS = 32, 512
_CHUNK = 1024  # rows of a matrix that are multiplied at once


@dataclasses.dataclass
class _Pass:
    """The forward pass that is running."""

    real_N: Tensor  # whether each row stands for a token; the others are padding


Pair = tuple[list[int], list[int]]  # the tokens of a source and of a target


class Gram:
    """The Gram matrix of a matrix's inputs, without padding."""

    def __init__(self, running: _Pass) -> None:
        self._running = running
        self._waiting: list[Tensor] = []
        self._sum_II: Tensor | None = None

    def add(self, x_NI: Tensor) -> None:
        """Add the rows of one call."""
        self._waiting.append(x_NI[self._running.real_N])
        if sum(map(len, self._waiting)) >= _CHUNK:
            self._flush()

    def total(self) -> Tensor | None:
        """X^T X [I, I] of all rows; None if there were none."""
        self._flush()
        return self._sum_II

    def _flush(self) -> None:
        if self._waiting:
            x_NI = torch.cat(self._waiting)
            product_II = x_NI.T @ x_NI
            self._sum_II = product_II if self._sum_II is None else self._sum_II.add_(product_II)
            self._waiting = []


class _Observed:
    """A `Matrix` that adds its inputs to a Gram matrix."""

    def __init__(self, matrix: Matrix, gram: Gram) -> None:
        self._matrix = matrix
        self._gram = gram
        self.nbytes = matrix.nbytes

    def apply(self, x_NI: Tensor) -> Tensor:
        self._gram.add(x_NI)
        return self._matrix.apply(x_NI)

    def activate(self, x_NI: Tensor, activation: str) -> Tensor:
        self._gram.add(x_NI)
        return self._matrix.activate(x_NI, activation)

    def add(self, x_NI: Tensor, residual_NO: Tensor) -> Tensor:
        self._gram.add(x_NI)
        return self._matrix.add(x_NI, residual_NO)


def calibrate(
    model: Model,
    rows: Rows,
    console: Console,
    *,
    seed: int = 0,
    max_source_tokens: int = 512,
    max_target_tokens: int = 256,
) -> None:
    """Write `int4.safetensors` into a model's folder, calibrated on a random sample of the given rows of its task.

    Raises:
        RequestError: the model's tokenizer cannot be loaded.
        NashError: the model computes numbers that are not finite.
        server.engine.errors.EngineError: the model cannot be loaded.
    """
    folder = model.folder
    most = model.spec.max_positions or max(max_source_tokens, max_target_tokens)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(rows), generator=generator)[:_MOST_ROWS].tolist()
    tokenized = TokenizedPairs.of(
        rows_at(rows, drawn),
        load_tokenizer(folder),
        max_source_tokens=min(max_source_tokens, most),
        max_target_tokens=min(max_target_tokens, most),
    )
    pairs: list[Pair] = []
    tokens = 0
    for example in (tokenized[i] for i in range(len(tokenized))):
        if tokens >= _ENOUGH_TOKENS:
            break
        pair = example["input_ids"].tolist(), example["labels"].tolist()
        pairs.append(pair)
        tokens += sum(map(len, pair))
    with Stage("four bits: collecting the inputs of the matrices", console, len(pairs), unit="rows") as stage:
        grams = _input_grams(model, pairs, stage.update)
    for name, gram_II in grams.items():
        if not bool(gram_II.isfinite().all()):
            raise NashError(f"{folder} gives {name} numbers that are not finite on these rows: its weights are damaged")
    with Stage("four bits: rounding the matrices", console, len(grams)) as stage:

        def rounded(name: str, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
            result = round_by_data(weight_OI, grams[name])
            stage.update(stage.done + 1)
            return result

        _write(model, rounded)


def calibrated_copy(directory: Path, rows: Rows, folder: Path, console: Console) -> None:
    """Copy the model in `directory` to an empty folder and add its `int4.safetensors`.

    Raises:
        model_store.errors.InvalidRequestError: the directory is not a publishable model.
        DiskFullError: the folder's disk has no room.
        RequestError, server.engine.errors.EngineError: as in `calibrate`.
    """
    check_publishable(directory)
    files = [directory / name for name in list_files(directory)]
    with full_disk_named(folder, sum(file.stat().st_size for file in files)):
        for file in files:
            if file.name != INT4:  # leave an older calibration behind
                shutil.copyfile(file, folder / file.name)
    calibrate(Model.open(folder), rows, console)


def round_without_data(model: Model) -> None:
    """Write `int4.safetensors` by plain rounding, for speed measurements only: answers are worse than they could be."""
    _write(model, lambda _, weight_OI: round_nearest(weight_OI))


def _write(model: Model, rounded: Callable[[str, Tensor], tuple[Tensor, Tensor]]) -> None:
    tensors: dict[str, Tensor] = {}

    def keep(name: str, linear: Linear) -> Linear:
        int4 = quantized(*rounded(name, linear.weight_OI))
        tensors[f"{name}.nibbles"], tensors[f"{name}.steps"] = int4.nibbles_OGB, int4.steps_OG
        return linear

    folder = model.folder
    with _network(model, longest=1) as network:
        changed = map_layers(network, keep)
        for _ in (*changed.encoder.layers, *changed.decoder.layers):  # reading a layer rounds it
            pass
    partial = folder / f".{INT4}.partial"  # an interrupted run leaves nothing that looks complete
    with full_disk_named(folder, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, partial, metadata=origin_metadata(model.weight_files))
    partial.replace(folder / INT4)


@torch.inference_mode()
def _input_grams(model: Model, pairs: Sequence[Pair], watch: Watch = lambda done, all_: None) -> dict[str, Tensor]:
    """The Gram matrix of each layer matrix's inputs on these sources and targets, by the matrix's name."""
    spec = model.spec
    config = EngineConfig(
        slots=_SLOTS,
        max_source_tokens=max(len(source) for source, _ in pairs),
        max_new_tokens=max(len(target) for _, target in pairs),
    )
    positions = max(config.max_source_tokens + SOURCE_BUCKET, config.max_new_tokens + LENGTH_BUCKET)  # with padding
    with _network(model, longest=positions) as network:
        built = build_model(
            network,
            dtype=torch.float32,
            device=torch.device("cpu"),
            longest_source=positions,
            longest_target=positions,
        )
    running = _Pass(torch.ones(0))
    observed, grams = _observed(built, running)
    backend = TorchBackend(spec, observed, config, torch.float32, lambda line: None, buckets=())
    pairs = sorted(pairs, key=lambda pair: (len(pair[0]), len(pair[1])))
    done = 0
    while done < len(pairs):
        batch = pairs[done : done + _SLOTS]
        longest = max(len(tokens) for pair in batch for tokens in pair)
        batch = batch[: max(1, _BATCH_TOKENS // longest)]
        done += len(batch)
        lengths_B = torch.tensor([len(source) for source, _ in batch])
        padded = -(-int(lengths_B.max()) // SOURCE_BUCKET) * SOURCE_BUCKET
        running.real_N = (torch.arange(padded) < lengths_B[:, None]).flatten()
        backend.encode([source for source, _ in batch], [[slot] for slot in range(len(batch))])
        fed = [[spec.decoder_start_id, *target[:-1]] for _, target in batch]
        feed = Feed(
            tokens=[token for tokens in fed for token in tokens],
            positions=[position for tokens in fed for position in range(len(tokens))],
            slots=[slot for slot, tokens in enumerate(fed) for _ in tokens],
            wanted=[0],
        )
        running.real_N = torch.ones(len(feed.tokens), dtype=torch.bool)
        backend.decode(feed)
        watch(done, len(pairs))
    return {name: total for name, gram in grams.items() if (total := gram.total()) is not None}


# The matrices of the PyTorch layers, by field, and the network's matrices that each of them holds. The keys and values
# of cross-attention are a single matrix for the whole decoder.
_MATRICES: dict[str, dict[str, tuple[str, ...]]] = {
    "attention": {"qkv": ("query", "key", "value"), "out": ("out",)},
    "cross": {"query": ("query",), "out": ("out",)},
    "ffn": {"gate": ("gate",), "into": ("into",), "out": ("out",)},
}


def _observed(model: TorchModel, running: _Pass) -> tuple[TorchModel, dict[str, Gram]]:
    """The model with a Gram matrix before every matrix of its layers, named as in `int4.safetensors`."""
    grams: dict[str, Gram] = {}

    def observed(matrix: Matrix, names: Iterable[str]) -> Matrix:
        gram = Gram(running)
        grams.update(dict.fromkeys(names, gram))
        return _Observed(matrix, gram)

    def sublayer_of(layer: Any, name: str, prefix: str) -> Any:
        sublayer = getattr(layer, name)
        return dataclasses.replace(
            sublayer,
            **{
                field: observed(matrix, [f"{prefix}.{name}.{each}" for each in names])
                for field, names in _MATRICES[name].items()
                if (matrix := getattr(sublayer, field)) is not None  # a gate may be None
            },
        )

    def layers_of(stack: str, layers: Sequence[Any]) -> list[Any]:
        result = []
        for i, layer in enumerate(layers):
            whole = [name for name in _MATRICES if not isinstance(getattr(layer, name, None), BiasAndNorm | None)]
            result.append(
                dataclasses.replace(layer, **{name: sublayer_of(layer, name, f"{stack}.{i}") for name in whole})
            )
        return result

    encoder = dataclasses.replace(model.encoder, layers=layers_of("encoder", model.encoder.layers))
    decoder = dataclasses.replace(model.decoder, layers=layers_of("decoder", model.decoder.layers))
    if decoder.cross_keys_values is not None:
        of_layers = range(len(decoder.layers))
        names = [f"decoder.{i}.cross.{each}" for i in of_layers for each in ("key", "value")]
        decoder = dataclasses.replace(decoder, cross_keys_values=observed(decoder.cross_keys_values, names))
    return dataclasses.replace(model, encoder=encoder, decoder=decoder), grams


def _network(model: Model, longest: int) -> AbstractContextManager[Network]:
    cpu = torch.device("cpu")
    return open_network(model, dtype=torch.float32, device=cpu, longest=longest)
