"""Steps over buffers that never move, so that CUDA records a step once and replays it.

Launching a step's operations one by one takes longer than computing them. One call replays a recorded step, but the
step is frozen: the same memory, the same sizes. So there is one recording for each of a set of sizes, the buckets, and
a step runs in the smallest that holds it. Everything that differs between steps is on the device: tokens, positions and
source lengths, from which the step itself looks up position biases and masks. On a CPU a step is replayed by calling it
on the same buffers, so that everything but the recording itself is the same.

Axes: N rows of a bucket, A slots in all, S source positions of a bucket, V vocabulary.
"""

import math
from collections.abc import Sequence as Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from server.engine.backend import Progress
from server.engine.errors import LoadError
from server.engine.pytorch.cache import KeyValueCache
from server.engine.pytorch.model import Decoder, DecoderViews

# How many lengths of each cache have a bucket: the whole capacity, its half, its quarter. A step reads at most twice
# what it needs; a fourth length would add a third to the number of recordings for the shortest sequences alone.
_LENGTHS = 3
_LEAST_POSITIONS = 32


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A step size that is recorded."""

    rows: int
    target_positions: int
    source_positions: int

    def holds(self, *, rows: int, target_positions: int, source_positions: int) -> bool:
        """Whether a step of this size can run in it."""
        return (
            self.rows >= rows
            and self.target_positions >= target_positions
            and self.source_positions >= source_positions
        )


def make_buckets(*, slots: int, target_positions: int, source_positions: int) -> list[Bucket]:
    """Every size, largest first: rows in powers of two plus all slots, lengths in halves of a slot's capacity.

    At most 9 per number of rows: 54 with 32 slots.
    """
    rows = sorted({slots, *(2**i for i in range(slots.bit_length()) if 2**i < slots)}, reverse=True)
    return [
        Bucket(rows=n, target_positions=target, source_positions=source)
        for n in rows
        for target in _halves(target_positions)
        for source in _halves(source_positions)
    ]


def _halves(capacity: int) -> list[int]:
    """The capacity, its half and its quarter, in multiples of 8, none below the minimum; descending."""
    parts = (-(-capacity // 2**i // 8) * 8 for i in range(_LENGTHS))
    return sorted({min(capacity, max(part, _LEAST_POSITIONS)) for part in parts}, reverse=True)


class StepBuffers:
    """What all steps read and write, at fixed addresses for the life of the backend."""

    def __init__(self, *, slots: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self.tokens_A = torch.zeros(slots, dtype=torch.long, device=device)
        self.positions_A = torch.zeros(slots, dtype=torch.long, device=device)
        self.source_lengths_A = torch.ones(slots, dtype=torch.long, device=device)  # 0 would leave no key to attend to
        self.logits_AV = torch.zeros(slots, vocab_size, dtype=wide, device=device)
        pinned = device.type == "cuda"
        self._staged = [torch.zeros(slots, dtype=torch.long, pin_memory=pinned) for _ in range(2)]

    @property
    def nbytes(self) -> int:
        """Memory on the device."""
        return sum(x.nbytes for x in (self.tokens_A, self.positions_A, self.source_lengths_A, self.logits_AV))

    def stage(self, tokens: Collection[int], positions: Collection[int]) -> None:
        """Copy in a step's rows; the unused slots behind them decode token 0 at position 0.

        A sequence that gets such a slot overwrites that position before reading it. The staging memory is free again
        once the step's logits have been read, which is before the next call.
        """
        for staged, buffer, values in zip(
            self._staged, (self.tokens_A, self.positions_A), (tokens, positions), strict=True
        ):
            staged.zero_()
            staged[: len(values)] = torch.tensor(values)
            buffer.copy_(staged, non_blocking=True)


class StaticStep:
    """One step of a bucket's size: slots 0 to N-1, one row each."""

    def __init__(
        self, bucket: Bucket, decoder: Decoder, cache: KeyValueCache, views: DecoderViews, buffers: StepBuffers
    ) -> None:
        """`views` cover the bucket's slots and positions; the step makes their masks itself."""
        self.bucket = bucket
        self._decoder = decoder
        self._cache = cache
        self._views = views
        self._buffers = buffers
        self._graph: torch.cuda.CUDAGraph | None = None

    def record(self, pool: Any) -> None:
        """Have CUDA record the step, with its memory in a pool (a CUDA handle) that recordings share."""
        self._compute()  # loads the kernels, which is not possible while recording
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._compute()
        self._graph = graph

    def replay(self) -> Tensor:
        """Logits [N, V] of the buffers' contents, valid until the next step."""
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()
        return self._buffers.logits_AV[: self.bucket.rows]

    def _compute(self) -> None:
        buffers, rows, source = self._buffers, self.bucket.rows, self.bucket.source_positions
        positions_S = torch.arange(source, device=buffers.tokens_A.device)
        empty_NS = positions_S >= buffers.source_lengths_A[:rows, None]
        mask_NS = torch.zeros(empty_NS.shape, dtype=self._cache.dtype, device=empty_NS.device)
        logits_NV = self._decoder.step(
            buffers.tokens_A[:rows],
            buffers.positions_A[:rows],
            self._cache,
            replace(self._views, cross_masks=self._decoder.cross_masks(mask_NS.masked_fill_(empty_NS, -math.inf))),
        )
        buffers.logits_AV[:rows].copy_(logits_NV)


class StaticSteps:
    """The steps of all buckets."""

    def __init__(
        self,
        decoder: Decoder,
        self_cache: KeyValueCache,
        cross_cache: KeyValueCache,
        buffers: StepBuffers,
        buckets: list[Bucket],
    ) -> None:
        """`buckets`: all or some of those from `make_buckets`."""
        self._buffers = buffers
        self._steps = [
            StaticStep(
                bucket,
                decoder,
                self_cache,
                DecoderViews(
                    windows=decoder.bias.windows(bucket.target_positions),
                    slots_N=None,
                    self_attention=self_cache.view(bucket.rows, bucket.target_positions),
                    cross_attention=cross_cache.view(bucket.rows, bucket.source_positions),
                    cross_masks={},
                ),
                buffers,
            )
            for bucket in buckets
        ]

    @torch.inference_mode()
    def record(self, device: torch.device, progress: Progress) -> int:
        """Have CUDA record every step, largest first, so that the others share its memory; returns the bytes used.

        Raises:
            LoadError: they do not fit into the device's memory.
        """
        pool = torch.cuda.graph_pool_handle()
        free_before = torch.cuda.mem_get_info(device)[0]
        try:
            for i, step in enumerate(self._steps, start=1):
                step.record(pool)
                if i == len(self._steps) or self._steps[i].bucket.rows != step.bucket.rows:
                    progress(f"CUDA graphs: {i} of {len(self._steps)}, steps of {step.bucket.rows} rows are recorded")
        except torch.OutOfMemoryError as error:
            raise LoadError(
                f"the device's memory is too small for {len(self._steps)} CUDA graphs of {self._steps[0].bucket.rows} "
                "slots: use fewer slots, or graphs=off"
            ) from error
        return max(0, free_before - torch.cuda.mem_get_info(device)[0])

    def run(self, tokens: Collection[int], positions: Collection[int], source_positions: int) -> Tensor | None:
        """Logits [rows, V] of slots 0 to rows-1, in the smallest bucket; None if no bucket is large enough."""
        rows, target_positions = len(tokens), max(positions) + 1
        for step in reversed(self._steps):
            if step.bucket.holds(rows=rows, target_positions=target_positions, source_positions=source_positions):
                self._buffers.stage(tokens, positions)
                return step.replay()[:rows]
        return None
