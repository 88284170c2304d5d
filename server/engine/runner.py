"""Runs the model: owns everything that is a tensor, slot by slot.

Axes: B newcomers, S positions of the longest source, N running sequences, R = N*H rows of attention.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from model_store.spec import ModelSpec
from server.engine.cache import KeyValueCache, cache_bytes
from server.engine.errors import LoadError
from server.engine.memory import available_bytes
from server.engine.model import DecoderViews
from server.engine.sampling import greedy, peak_logprobs
from server.engine.scheduler import Move
from server.engine.sequence import EngineConfig, Sequence
from server.engine.weights import Model

# Self-attention looks at a whole number of buckets of positions, so that the views of the cache last several steps.
LENGTH_BUCKET = 16

# Sources are padded to a multiple of this: every row count that is new to it costs oneDNN a millisecond, once.
SOURCE_BUCKET = 8


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One token for each running sequence, in the order of their slots."""

    tokens: list[int]
    peaks: list[float]  # the logit of each token; not finite where any of its row was NaN or +inf
    logprobs: list[float] | None


class Runner:
    """The model's state between steps: caches, next tokens and positions of every slot."""

    def __init__(self, spec: ModelSpec, model: Model, config: EngineConfig, dtype: torch.dtype) -> None:
        """Allocate the caches.

        Raises:
            LoadError: they do not fit into the memory that is left.
        """
        self._spec = spec
        self._model = model
        self._device = torch.device(config.device)
        self._dtype = dtype
        self._self_cache, self._cross_cache = _allocate_caches(spec, config, dtype)
        # By slot: the token that goes into the decoder next, and its position.
        self._tokens = torch.zeros(config.slots, dtype=torch.long, device=self._device)
        self._positions = torch.zeros_like(self._tokens)
        self._views: DecoderViews | None = None  # of the sequences that ran last; None once their slots changed
        self._viewed_length = 0

    def memory_bytes(self) -> dict[str, int]:
        """Fixed for the life of the runner: `weights` and `cache`."""
        return {
            "weights": self._model.nbytes,
            "cache": self._self_cache.nbytes + self._cross_cache.nbytes,
        }

    def move(self, moves: list[Move], running: list[Sequence]) -> None:
        """Copy the state of sequences that change their slot; `running` is the order after the moves."""
        for move in moves:
            sequence = running[move.target]
            self._self_cache.move(move.source, move.target, len(sequence.tokens))
            self._cross_cache.move(move.source, move.target, len(sequence.source_ids))
            for by_slot in (self._tokens, self._positions):
                by_slot[move.target] = by_slot[move.source]

    def encode(self, admitted: list[Sequence]) -> int:
        """Encode newcomers as one padded batch into their slots; returns the number of padding positions."""
        lengths = [len(sequence.source_ids) for sequence in admitted]
        size = -(-max(lengths) // SOURCE_BUCKET) * SOURCE_BUCKET
        pad = [self._spec.pad_id] * size
        ids_BS = torch.tensor([(s.source_ids + pad)[:size] for s in admitted], device=self._device)
        slots_B = torch.tensor([sequence.slot for sequence in admitted], device=self._device)
        hidden_MD = self._model.encoder(ids_BS, self._padding_mask(lengths, size))
        self._model.decoder.fill_cross_cache(self._cross_cache, hidden_MD, slots_B)
        self._tokens.index_fill_(0, slots_B, self._spec.decoder_start_id)
        self._positions.index_fill_(0, slots_B, 0)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # so that the time of encoding is told from that of decoding
        return size * len(admitted) - sum(lengths)

    def decode(self, running: list[Sequence], *, same_slots: bool) -> Sampled:
        """Advance each sequence by one token; `same_slots`: they are those of the last call, in the same order."""
        sequences = len(running)
        length = max(len(sequence.tokens) for sequence in running) + 1
        if not same_slots or self._views is None or length > self._viewed_length:
            self._viewed_length = -(-length // LENGTH_BUCKET) * LENGTH_BUCKET
            self._views = self._view(running, self._viewed_length)
        tokens_N, positions_N = self._tokens[:sequences], self._positions[:sequences]
        logits_NV = self._model.decoder.step(tokens_N, positions_N, self._self_cache, self._views)
        choice = greedy(logits_NV)
        tokens_N.copy_(choice.tokens_N)
        positions_N.add_(1)
        wants_logprobs = any(sequence.parameters.logprobs for sequence in running)
        return Sampled(
            tokens=choice.tokens_N.tolist(),
            peaks=choice.peaks_N.tolist(),
            logprobs=peak_logprobs(logits_NV, choice.peaks_N).tolist() if wants_logprobs else None,
        )

    def clear(self, slot: int) -> None:
        """Forget a slot's keys and values, where they may not be finite."""
        self._self_cache.clear(slot)
        self._cross_cache.clear(slot)

    def _view(self, running: list[Sequence], length: int) -> DecoderViews:
        decoder, sequences = self._model.decoder, len(running)
        lengths = [len(sequence.source_ids) for sequence in running]
        mask_NS = self._padding_mask(lengths, max(lengths))
        cross_masks = {}
        if mask_NS is not None:
            cross_masks = {
                heads: mask_NS[:, None].expand(-1, heads, -1).reshape(sequences * heads, 1, -1)
                for heads in set(decoder.cross_heads) - {0}
            }
        return DecoderViews(
            windows=decoder.bias.windows(length),
            self_attention=self._self_cache.view(sequences, length),
            cross_attention=self._cross_cache.view(sequences, max(lengths)),
            cross_masks=cross_masks,
        )

    def _padding_mask(self, lengths: list[int], size: int) -> Tensor | None:
        """[len(lengths), size]: 0 where there is a token, -inf where there is none; None if all are full."""
        if min(lengths) == size:
            return None
        empty = torch.arange(size, device=self._device) >= torch.tensor(lengths, device=self._device)[:, None]
        return torch.zeros(empty.shape, dtype=self._dtype, device=self._device).masked_fill_(empty, -math.inf)


def longest_source(config: EngineConfig) -> int:
    """Positions that a slot's cross-attention cache must have."""
    return -(-config.max_source_tokens // SOURCE_BUCKET) * SOURCE_BUCKET


def longest_target(config: EngineConfig) -> int:
    """Positions that a slot's self-attention cache must have."""
    return -(-config.max_new_tokens // LENGTH_BUCKET) * LENGTH_BUCKET


def _allocate_caches(spec: ModelSpec, config: EngineConfig, dtype: torch.dtype) -> tuple[KeyValueCache, KeyValueCache]:
    device = torch.device(config.device)
    self_heads = [len(layer.self_heads) for layer in spec.decoder]
    cross_heads = [len(layer.cross_heads) for layer in spec.decoder]
    needed, available = (
        cache_bytes(
            self_heads, slots=config.slots, capacity=longest_target(config), head_dim=spec.head_dim, dtype=dtype
        )
        + cache_bytes(
            cross_heads, slots=config.slots, capacity=longest_source(config), head_dim=spec.head_dim, dtype=dtype
        ),
        available_bytes(device),
    )
    if needed > available:
        raise LoadError(
            f"the caches of {config.slots} slots with {config.max_source_tokens} source and {config.max_new_tokens} "
            f"new tokens need {needed / 1e6:.0f} MB, but {available / 1e6:.0f} MB are free: lower one of the three"
        )
    shape = {"slots": config.slots, "head_dim": spec.head_dim}
    return (
        KeyValueCache(self_heads, capacity=longest_target(config), dtype=dtype, device=device, **shape),
        KeyValueCache(cross_heads, capacity=longest_source(config), dtype=dtype, device=device, **shape),
    )
