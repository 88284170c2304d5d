"""A model computed by PyTorch, on CUDA or any CPU.

Axes: B sources in an encoder batch, S positions of the longest, N rows of a step, R = N*H rows of attention.
"""

import math
from collections.abc import Sequence as Collection
from functools import partial

import torch
from torch import Tensor

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.backend import EncodedSource, Feed, GreedyStep, Progress
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.machine.memory import available_bytes
from server.engine.pytorch.cache import KeyValueCache, cache_bytes
from server.engine.pytorch.matrices.bitsandbytes_matrix import BYTES_PER_WEIGHT, check_bitsandbytes
from server.engine.pytorch.matrices.weight_bytes import weight_bytes
from server.engine.pytorch.model import DecoderViews
from server.engine.pytorch.model_builder import TorchModel, build_model
from server.engine.pytorch.static_step import Bucket, StaticSteps, StepBuffers, make_buckets
from server.engine.weights.network import Network
from server.engine.weights.reading import open_network

# Self-attention covers whole buckets of positions, so that the cache views last several steps.
LENGTH_BUCKET = 16

# Sources are padded to a multiple of this: every new row count costs oneDNN a millisecond, once.
SOURCE_BUCKET = 8


class TorchBackend:
    """Implements `backend.Backend`."""

    has_own_threads = False
    runs_ahead = False

    def __init__(
        self,
        spec: ModelSpec,
        model: TorchModel,
        config: EngineConfig,
        dtype: torch.dtype,
        progress: Progress,
        buckets: Collection[Bucket],
    ) -> None:
        """Allocate the caches and record the steps of `buckets`; callers use `load` or `build`."""
        # On a GPU a step of all slots takes hardly longer than one of a few; and a replayed step writes to the slots
        # behind its rows, so that nobody may be left out.
        self.rows_cost = config.device == "cpu" and not uses_graphs(config)
        self._path: str | None = None
        self._model = model
        self._pad_id = spec.pad_id
        self._device = torch.device(config.device)
        self._dtype = dtype
        cache_for = partial(KeyValueCache, slots=config.slots, head_dim=spec.head_dim, dtype=dtype, device=self._device)
        self._self_cache = cache_for(_self_heads(spec), capacity=_target_positions(config))
        self._cross_cache = cache_for(_cross_heads(spec), capacity=_source_positions(config))
        self._source_lengths = [0] * config.slots
        # From the last step whose rows were slots 0 to n-1; None once their sources have changed.
        self._views: DecoderViews | None = None
        self._viewed = (0, 0)  # number of slots, and of positions
        self._buffers: StepBuffers | None = None
        self._steps: StaticSteps | None = None
        self._recorded_bytes = 0
        if self._device.type == "cuda":
            self.rehearse(config)
        if uses_graphs(config):
            self._buffers = StepBuffers(
                slots=config.slots, vocab_size=spec.target_vocab_size, dtype=dtype, device=self._device
            )
            self._steps = StaticSteps(model.decoder, self._self_cache, self._cross_cache, self._buffers, list(buckets))
            if self._device.type == "cuda":
                self._recorded_bytes = self._steps.record(self._device, progress)

    @classmethod
    def load(
        cls,
        model: Model,
        config: EngineConfig,
        dtype: torch.dtype,
        progress: Progress = lambda line: None,
    ) -> "TorchBackend":
        """Load a model's weights; `progress` receives the progress of CUDA's recordings.

        Raises:
            LoadError: the file is missing or broken, its tensors do not match its shape, or weights and caches do not
                fit into the available memory.
        """
        device = torch.device(config.device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # graphs are recorded and replayed on the current device
        quantization = _quantization(config)
        _check_memory(model.spec, config, dtype, available_bytes(device))
        if quantization in BYTES_PER_WEIGHT:
            check_bitsandbytes(quantization, dtype=dtype, device=device)
        with open_network(
            model, dtype=dtype, device=device, longest=longest_positions(config), int4=config.dtype == "int4"
        ) as network:
            return cls.build(network, model.spec, config, dtype, progress)

    @classmethod
    def build(
        cls,
        network: Network,
        spec: ModelSpec,
        config: EngineConfig,
        dtype: torch.dtype,
        progress: Progress = lambda line: None,
        buckets: Collection[Bucket] | None = None,
    ) -> "TorchBackend":
        """Build from given weights of the shape `spec`, whatever their origin.

        `buckets`: those of `graph_buckets` whose steps are recorded, None: all; other steps run eagerly.

        Raises:
            LoadError: it does not fit into the available memory.
        """
        model = build_model(
            network,
            dtype=dtype,
            device=torch.device(config.device),
            quantization=_quantization(config),
            longest_source=_source_positions(config),
            longest_target=_target_positions(config),
        )
        return cls(spec, model, config, dtype, progress, graph_buckets(config) if buckets is None else buckets)

    @property
    def path(self) -> str | None:
        """How the last step ran, "graph" or "eager"; None if there are no graphs."""
        return self._path

    def memory_bytes(self) -> dict[str, int]:
        """`weights` and `cache`, fixed for the life of the backend."""
        cache = self._self_cache.nbytes + self._cross_cache.nbytes + self._recorded_bytes
        return {
            "weights": self._model.nbytes,
            "cache": cache + (0 if self._buffers is None else self._buffers.nbytes),
        }

    @torch.inference_mode()
    def rehearse(self, config: EngineConfig) -> None:
        """Encode the most that is ever encoded at once, so that a lack of memory shows before any request waits.

        Raises:
            LoadError: it does not fit.
        """
        longest = config.max_source_tokens
        count = max(1, min(config.slots, config.max_encode_tokens // longest))
        lengths = [longest] * (count - 1) + [max(1, longest - 1)]  # one needs padding: masks take memory too
        try:
            self.encode([[self._pad_id] * length for length in lengths], [[slot] for slot in range(count)])
        except torch.OutOfMemoryError as error:
            raise LoadError(
                f"weights and caches leave no memory to encode {count} sources of {longest} tokens at once: "
                "lower max_encode_tokens, max_source_tokens or slots"
            ) from error

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
        if self._buffers is not None:
            lengths_K = torch.tensor([lengths[i] for _, i in pairs], device=self._device)
            self._buffers.source_lengths_A.index_copy_(0, slots_K, lengths_K)
        self._views = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # so that encoding and decoding are timed separately
        return size * len(sources) - sum(lengths)

    def copy_of_source(self, slot: int) -> EncodedSource:
        """The keys and values of a slot's source, without padding."""
        return self._cross_cache.copy_of(slot, self._source_lengths[slot])

    def restore_source(self, encoded: EncodedSource, length: int, slots: Collection[int]) -> None:
        """Copy an encoded source into each of its slots."""
        for slot in slots:
            self._cross_cache.put(slot, encoded)
            self._source_lengths[slot] = length
            if self._buffers is not None:
                self._buffers.source_lengths_A[slot] = length
        self._views = None

    def decode(self, feed: Feed) -> Tensor:
        """Logits [wanted, vocabulary]; fastest if row i is slot i, as it is when every slot has one row."""
        in_order = feed.slots == list(range(len(feed.slots)))
        logits = self._replay(feed) if in_order else None
        if self._steps is not None:
            self._path = "eager" if logits is None else "graph"
        if logits is None:
            logits = self._decode_eagerly(feed, in_order=in_order)
        return logits.float() if logits.dtype.itemsize < 4 else logits

    def decode_ahead(self, feed: Feed, *, steps: int, ends: Collection[int], seconds: float) -> list[GreedyStep]:
        """Makes no steps; on CUDA, graphs save the time between them."""
        return []

    def reorder(self, targets: Collection[int], origins: Collection[int], length: int) -> None:
        """Give each target the current decoded state of its origin; they share a source."""
        pairs = torch.tensor([tuple(targets), tuple(origins)], device=self._device)
        self._self_cache.reorder(pairs[0], pairs[1], length)

    def move(self, origin: int, target: int, *, source_length: int, length: int) -> None:
        """Copy one slot's state over another's."""
        self._self_cache.move(origin, target, length)
        self._cross_cache.move(origin, target, source_length)
        self._source_lengths[target] = source_length
        if self._buffers is not None:
            self._buffers.source_lengths_A[target] = source_length
        self._views = None

    def clear(self, slot: int) -> None:
        """Forget a slot's keys and values, which may not be finite."""
        self._self_cache.clear(slot)
        self._cross_cache.clear(slot)

    def _replay(self, feed: Feed) -> Tensor | None:
        """Logits of a step with row i at slot i; None if no recorded size holds it."""
        if self._steps is None:
            return None
        longest = max(self._source_lengths[slot] for slot in feed.slots)
        logits = self._steps.run(feed.tokens, feed.positions, longest)
        wanted_W = self._wanted(feed)
        return logits if logits is None or wanted_W is None else logits.index_select(0, wanted_W)

    def _decode_eagerly(self, feed: Feed, *, in_order: bool) -> Tensor:
        rows = len(feed.slots)
        length = -(-(max(feed.positions) + 1) // LENGTH_BUCKET) * LENGTH_BUCKET
        if not in_order:
            views = self._view(feed.slots, length, in_order=False)
        else:
            if self._views is None or self._viewed[0] != rows or self._viewed[1] < length:
                self._views, self._viewed = self._view(feed.slots, length, in_order=True), (rows, length)
            views = self._views
        return self._model.decoder.step(
            torch.tensor(feed.tokens, device=self._device),
            torch.tensor(feed.positions, device=self._device),
            self._self_cache,
            views,
            self._wanted(feed),
        )

    def _wanted(self, feed: Feed) -> Tensor | None:
        return None if len(feed.wanted) == len(feed.slots) else torch.tensor(feed.wanted, device=self._device)

    def _view(self, slots: list[int], length: int, *, in_order: bool) -> DecoderViews:
        decoder, rows = self._model.decoder, len(slots)
        lengths = [self._source_lengths[slot] for slot in slots]
        longest = max(lengths)
        mask_NS = self._padding_mask(lengths, longest)
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
            cross_masks={} if mask_NS is None else decoder.cross_masks(mask_NS),
        )

    def _padding_mask(self, lengths: list[int], size: int) -> Tensor | None:
        """[len(lengths), size]: 0 at a token, -inf at padding; None if there is no padding."""
        if min(lengths) == size:
            return None
        empty = torch.arange(size, device=self._device) >= torch.tensor(lengths, device=self._device)[:, None]
        return torch.zeros(empty.shape, dtype=self._dtype, device=self._device).masked_fill_(empty, -math.inf)


def uses_graphs(config: EngineConfig) -> bool:
    """Whether steps are replayed: on CUDA from recordings, on a CPU by calling them."""
    return config.graphs == "on" or (config.graphs == "auto" and config.device != "cpu")


def graph_buckets(config: EngineConfig) -> list[Bucket]:
    """Every step size that a backend with this configuration replays, largest first."""
    return make_buckets(
        slots=config.slots,
        target_positions=_target_positions(config),
        source_positions=_source_positions(config),
    )


def longest_positions(config: EngineConfig) -> int:
    """How many positions need embeddings, on either side."""
    return max(_source_positions(config), _target_positions(config))


def _quantization(config: EngineConfig) -> str:
    """The weights' quantization: dtype int8 or int4 applies to them alone, and the rest is computed in float32."""
    return config.dtype if config.dtype in ("int8", "int4") else config.quantization


def _source_positions(config: EngineConfig) -> int:
    """Positions that a slot's cross-attention cache and the encoder need."""
    return -(-config.max_source_tokens // SOURCE_BUCKET) * SOURCE_BUCKET


def _target_positions(config: EngineConfig) -> int:
    """Positions that a slot's self-attention cache needs."""
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
    weights = weight_bytes(spec, dtype, _quantization(config))
    if uses_graphs(config):
        caches += config.slots * spec.target_vocab_size * max(4, dtype.itemsize)  # their logits
    if weights + caches > available:
        raise LoadError(
            f"{weights / 1e6:.0f} MB of weights and the caches of {config.slots - config.spare_slots} slots with "
            f"{config.max_source_tokens} source and {config.max_new_tokens} new tokens need "
            f"{(weights + caches) / 1e6:.0f} MB, but {available / 1e6:.0f} MB are free: lower one of the three"
        )
