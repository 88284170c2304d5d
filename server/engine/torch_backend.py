"""A model that PyTorch computes: on CUDA, and on any CPU.

Axes: B sources in an encoder batch, S positions of the longest, N rows of a step, R = N*H rows of attention.
"""

import math
from collections.abc import Sequence as Collection
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model_store.spec import ModelSpec
from server.engine.backend import Feed
from server.engine.cache import KeyValueCache, cache_bytes
from server.engine.errors import LoadError
from server.engine.memory import available_bytes
from server.engine.model import DecoderViews
from server.engine.model_builder import Model, build_model
from server.engine.sequence import EngineConfig
from server.engine.weights import open_network

# Self-attention looks at a whole number of buckets of positions, so that the views of the cache last several steps.
LENGTH_BUCKET = 16

# Sources are padded to a multiple of this: every row count that is new to it costs oneDNN a millisecond, once.
SOURCE_BUCKET = 8


class TorchBackend:
    """Implements `backend.Backend`."""

    def __init__(self, spec: ModelSpec, model: Model, config: EngineConfig, dtype: torch.dtype) -> None:
        """Allocate the caches; callers use `TorchBackend.load`."""
        self._model = model
        self._pad_id = spec.pad_id
        self._device = torch.device(config.device)
        self._dtype = dtype
        cache_for = partial(KeyValueCache, slots=config.slots, head_dim=spec.head_dim, dtype=dtype, device=self._device)
        self._self_cache = cache_for(_self_heads(spec), capacity=_target_positions(config))
        self._cross_cache = cache_for(_cross_heads(spec), capacity=_source_positions(config))
        self._source_lengths = [0] * config.slots
        # Of the last step whose rows were slots 0 to n-1; None once their sources changed.
        self._views: DecoderViews | None = None
        self._viewed = (0, 0)  # how many slots, and their positions

    @classmethod
    def load(cls, directory: Path, spec: ModelSpec, config: EngineConfig, dtype: torch.dtype) -> "TorchBackend":
        """Load `model.safetensors` of a model of the shape `spec`.

        Raises:
            LoadError: the file is missing or broken, its tensors are not those of `spec`, or weights and caches do
                not fit into the memory that is left.
        """
        device = torch.device(config.device)
        _check_memory(spec, config, dtype, available_bytes(device))
        source, target = _source_positions(config), _target_positions(config)
        with open_network(directory, spec, dtype=dtype, device=device, longest=max(source, target)) as network:
            model = build_model(network, dtype=dtype, device=device, longest_source=source, longest_target=target)
        return cls(spec, model, config, dtype)

    def memory_bytes(self) -> dict[str, int]:
        """Fixed for the life of the backend: `weights` and `cache`."""
        return {"weights": self._model.nbytes, "cache": self._self_cache.nbytes + self._cross_cache.nbytes}

    def encode(self, sources: Collection[list[int]], slots: Collection[Collection[int]]) -> int:
        """Encode sources as one padded batch, each into all of its slots; returns the number of padding positions."""
        lengths = [len(source) for source in sources]
        size = -(-max(lengths) // SOURCE_BUCKET) * SOURCE_BUCKET
        pad = [self._pad_id] * size
        ids_BS = torch.tensor([(source + pad)[:size] for source in sources], device=self._device)
        hidden_MD = self._model.encoder(ids_BS, self._padding_mask(lengths, size))
        pairs = [(slot, i) for i, of_source in enumerate(slots) for slot in of_source]
        slots_K, sources_K = torch.tensor(pairs, device=self._device).unbind(1)
        self._model.decoder.fill_cross_cache(self._cross_cache, hidden_MD, slots_K, sources_K, batch=len(sources))
        for slot, i in pairs:
            self._source_lengths[slot] = lengths[i]
        self._views = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # so that the time of encoding is told from that of decoding
        return size * len(sources) - sum(lengths)

    def decode(self, feed: Feed) -> Tensor:
        """Logits [wanted, vocabulary]; quickest where row i is slot i, as it is where every slot has one row."""
        rows = len(feed.slots)
        length = -(-(max(feed.positions) + 1) // LENGTH_BUCKET) * LENGTH_BUCKET
        if feed.slots == list(range(rows)):
            if self._views is None or self._viewed[0] != rows or self._viewed[1] < length:
                self._views, self._viewed = self._view(feed.slots, length, in_order=True), (rows, length)
            views = self._views
        else:
            views = self._view(feed.slots, length, in_order=False)
        logits = self._model.decoder.step(
            torch.tensor(feed.tokens, device=self._device),
            torch.tensor(feed.positions, device=self._device),
            self._self_cache,
            views,
            None if len(feed.wanted) == rows else torch.tensor(feed.wanted, device=self._device),
        )
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def reorder(self, targets: Collection[int], origins: Collection[int], length: int) -> None:
        """Give each target the decoded state that its origin has now; their sources are the same."""
        pairs = torch.tensor([tuple(targets), tuple(origins)], device=self._device)
        self._self_cache.reorder(pairs[0], pairs[1], length)

    def move(self, origin: int, target: int, *, source_length: int, length: int) -> None:
        """Copy a slot's state over another's."""
        self._self_cache.move(origin, target, length)
        self._cross_cache.move(origin, target, source_length)
        self._source_lengths[target] = source_length
        self._views = None

    def clear(self, slot: int) -> None:
        """Forget a slot's keys and values, where they may not be finite."""
        self._self_cache.clear(slot)
        self._cross_cache.clear(slot)

    def _view(self, slots: list[int], length: int, *, in_order: bool) -> DecoderViews:
        decoder, rows = self._model.decoder, len(slots)
        lengths = [self._source_lengths[slot] for slot in slots]
        longest = max(lengths)
        mask_NS = self._padding_mask(lengths, longest)
        cross_masks = {}
        if mask_NS is not None:
            cross_masks = {
                heads: mask_NS[:, None].expand(-1, heads, -1).reshape(rows * heads, 1, -1)
                for heads in set(decoder.cross_heads) - {0}
            }
        slots_N = None if in_order else torch.tensor(slots, device=self._device)
        return DecoderViews(
            windows=decoder.bias.windows(length),
            slots_N=slots_N,
            self_attention=self._self_cache.view(rows, length)
            if slots_N is None
            else self._self_cache.gather(slots_N, length),
            cross_attention=self._cross_cache.view(rows, longest)
            if slots_N is None
            else self._cross_cache.gather(slots_N, longest),
            cross_masks=cross_masks,
        )

    def _padding_mask(self, lengths: list[int], size: int) -> Tensor | None:
        """[len(lengths), size]: 0 where there is a token, -inf where there is none; None if all are full."""
        if min(lengths) == size:
            return None
        empty = torch.arange(size, device=self._device) >= torch.tensor(lengths, device=self._device)[:, None]
        return torch.zeros(empty.shape, dtype=self._dtype, device=self._device).masked_fill_(empty, -math.inf)


def _source_positions(config: EngineConfig) -> int:
    """Positions that a slot's cross-attention cache, and the encoder, must have."""
    return -(-config.max_source_tokens // SOURCE_BUCKET) * SOURCE_BUCKET


def _target_positions(config: EngineConfig) -> int:
    """Positions that a slot's self-attention cache must have."""
    return -(-config.max_new_tokens // LENGTH_BUCKET) * LENGTH_BUCKET


def _self_heads(spec: ModelSpec) -> list[int]:
    return [len(layer.self_heads) for layer in spec.decoder]


def _cross_heads(spec: ModelSpec) -> list[int]:
    return [len(layer.cross_heads) for layer in spec.decoder]


def _check_memory(spec: ModelSpec, config: EngineConfig, dtype: torch.dtype, available: int) -> None:
    bytes_for = partial(cache_bytes, slots=config.slots, head_dim=spec.head_dim, dtype=dtype)
    caches = bytes_for(_self_heads(spec), capacity=_target_positions(config)) + bytes_for(
        _cross_heads(spec), capacity=_source_positions(config)
    )
    # The output matrix holds a norm or a layout of its own, so a tied one is there twice.
    elements = spec.target_vocab_size * spec.d_model + sum(math.prod(shape) for _, shape in spec.tensor_shapes())
    weights = elements * dtype.itemsize
    if weights + caches > available:
        raise LoadError(
            f"{weights / 1e6:.0f} MB of weights and the caches of {config.slots} slots with "
            f"{config.max_source_tokens} source and {config.max_new_tokens} new tokens need "
            f"{(weights + caches) / 1e6:.0f} MB, but {available / 1e6:.0f} MB are free: lower one of the three"
        )
