"""The backend over the native operator: which rows are computed, and in which slots."""

import ctypes
import itertools
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from model_store.model.config import layout_of
from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine.backend import EncodedSource, Feed, GreedyStep
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.machine.cpus import usable_cpus
from server.engine.machine.memory import available_bytes
from server.engine.machine.topology import default_threads
from server.engine.native.arena import Arena
from server.engine.native.building import DTYPES, LANES, CachePlan, StackBuilder
from server.engine.native.operator import library as native
from server.engine.native.rows import RowBuffer, make_workspace, with_hidden
from server.engine.weights import network
from server.engine.weights.reading import open_network

# Bytes per weight: in the layers, in the output matrix, in the embedding.
_BYTES = {"float32": (4, 4, 4), "bfloat16": (2, 2, 2), "int8": (1, 1, 2), "int4": (18 / 32, 1, 2)}

_BLOCK_ROWS = 64  # positions that go through a layer together; their feed-forward units stay in the cache
_MOST_REFUSED = 8  # consecutive slices too short for a block of rows


class NativeBackend:
    """A loaded network on the CPU. One thread owns it; the operator has its own threads."""

    has_own_threads = True
    rows_cost = True
    runs_ahead = True

    @classmethod
    def load(cls, model: Model, config: EngineConfig) -> "NativeBackend":
        """Load a model's weights; `capabilities` says whether that is possible.

        Raises:
            LoadError: the file is missing or broken, its tensors do not match its shape, or the caches do not fit into
                the available memory.
        """
        longest = max(config.max_source_tokens, config.max_new_tokens + 1)
        cpu = torch.device("cpu")
        int4 = config.dtype == "int4"
        with open_network(model, dtype=torch.float32, device=cpu, longest=longest, int4=int4) as net:
            _check_memory(_weight_bytes(model.spec, config), CachePlan(net, config).nbytes, config)
            return cls(net, config)

    def __init__(self, net: network.Network, config: EngineConfig) -> None:
        """Pack the weights and allocate everything a step needs; callers use `load`."""
        found = native.library()
        assert found is not None, "callers ask capabilities.why_not_native first"
        self._library = found
        threads = config.threads or default_threads(usable_cpus())
        cache = CachePlan(net, config)
        self._weights, self._caches = Arena(), Arena()
        builder = StackBuilder(found, net, DTYPES[config.dtype], self._weights, self._caches, cache)
        self._encoder, self._decoder = builder.encoder(), builder.decoder()
        self._own_state, self._source_state = builder.own_state, builder.source_state
        self._structures = builder.kept  # what the structures point to
        self._rows = RowBuffer(max(config.slots, config.max_encode_tokens, config.max_source_tokens))
        self._workspace = make_workspace(
            self._caches,
            rows=self._rows.capacity,
            threads=threads,
            width=net.width,
            widest_attention=builder.widest_attention,
            widest_units=builder.widest_units,
            widest_input=max(net.width, builder.widest_attention, builder.widest_units),
            longest_scores=max(cache.own_capacity, cache.source_capacity),
            head_dim=net.head_dim,
        )
        # For a source that is encoded in slices.
        self._slice_rows = RowBuffer(config.max_source_tokens)
        self._slice_hidden = self._caches.take(config.max_source_tokens * net.width, torch.float32)
        self._slice_workspace = with_hidden(self._workspace, self._slice_hidden)
        self._slice_block = cache.slice_block
        self._progress: native.NativeProgress | None = None
        self._row_seconds = native.RowSeconds()  # recent time per row
        self._step_s = 0.0  # what the last decode step took
        self._refused = 0  # consecutive slices too short for a block of rows
        self._logits = self._caches.take(config.slots * net.vocab_size, torch.float32).view(config.slots, -1)
        self._pool = native.create_pool(found, threads)
        # By slot: where its decoded state is, and where the source it reads is.
        self._own = list(range(config.slots))
        self._source = list(range(config.slots))
        self._source_lengths = [0] * config.slots

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self._library.pool_destroy(self._pool)

    def hold_threads(self, threads: int) -> None:
        """Compute with exactly this many threads, at most the configured number; 0: as many as pay off."""
        self._library.pool_hold(self._pool, threads)

    def active_threads(self) -> int:
        """How many threads computed the last pass."""
        active: int = self._library.pool_active(self._pool)
        return active

    @property
    def path(self) -> None:
        """Nothing is replayed here."""
        return None

    def memory_bytes(self) -> dict[str, int]:
        """`weights` and `cache`, which includes the workspace; fixed for the life of the backend."""
        return {"weights": self._weights.taken_bytes, "cache": self._caches.taken_bytes}

    def encode(self, sources: Collection[list[int]], slots: Collection[Collection[int]]) -> int:
        """Encode sources, each into all of its slots; nothing is padded, so the result is 0."""
        free = self._free_places(slot for own in slots for slot in own)
        batch: list[tuple[list[int], int]] = []  # sources, and where their keys and values go
        count = 0
        for source, own in zip(sources, slots, strict=True):
            if count + len(source) > self._rows.capacity:
                self._encode_batch(batch)
                batch, count = [], 0
            place = next(free)
            self._set_source(own, place, len(source))
            batch.append((source, place))
            count += len(source)
        self._encode_batch(batch)
        return 0

    def copy_of_source(self, slot: int) -> EncodedSource:
        """The keys and values of a slot's source, in whole blocks of positions."""
        place, blocks = self._source[slot], -(-self._source_lengths[slot] // LANES)
        return [by_place[place, :, :blocks].clone() for each in self._source_state for by_place in each]

    def restore_source(self, encoded: EncodedSource, length: int, slots: Collection[int]) -> None:
        """Copy an encoded source to a free place, which its slots then read."""
        place, blocks = next(self._free_places(slots)), -(-length // LANES)
        self._set_source(slots, place, length)
        targets = (by_place[place, :, :blocks] for each in self._source_state for by_place in each)
        for target, kept in zip(targets, encoded, strict=True):
            target.copy_(kept)

    def begin_source(self, source: list[int], slots: Collection[int]) -> None:
        """Begin a source for its slots, to be encoded in slices."""
        place = next(self._free_places(slots))
        self._set_source(slots, place, len(source))
        count = len(source)
        self._slice_rows.fill(
            tokens=source,
            positions=range(count),
            slots=[self._slice_block] * count,
            lengths=[count] * count,
            memory_slots=[place] * count,
        )
        self._progress = native.NativeProgress(block=_BLOCK_ROWS, row_seconds=self._row_seconds)

    def go_on(self, seconds: float | None) -> bool:
        """Encode the begun source for about `seconds`, or to its end if None; returns whether it is done."""
        assert self._progress is not None, "no source was begun"
        if self._refused == _MOST_REFUSED:  # whatever a block takes, or seems to take, no source waits forever
            self._progress.row_seconds = native.RowSeconds()
        before = self._progress.place
        done = self._library.encode(
            self._encoder,
            self._decoder,
            self._slice_rows.structure,
            self._slice_workspace,
            self._pool,
            self._progress,
            math.inf if seconds is None else seconds,
        )
        self._row_seconds = self._progress.row_seconds
        self._refused = self._refused + 1 if self._progress.place == before and not done else 0
        if done:
            self._progress = None
        return bool(done)

    def drop_source(self) -> None:
        """Abandon the begun source: nothing more is written to its place."""
        self._progress = None

    def decode(self, feed: Feed) -> Tensor:
        """Logits [wanted, V] in float32; valid until the next call."""
        begun_s = time.perf_counter()
        capacity, done = self._rows.capacity, 0
        for start in range(0, len(feed.tokens), capacity):  # usually once; rows may be split over several passes
            stop = min(start + capacity, len(feed.tokens))
            slots, wanted = feed.slots[start:stop], [row - start for row in feed.wanted if start <= row < stop]
            self._fill(feed.tokens[start:stop], feed.positions[start:stop], slots, wanted)
            out = self._logits[done:].data_ptr()
            self._library.decode(self._decoder, self._rows.structure, self._workspace, self._pool, out)
            done += len(wanted)
        self._step_s = time.perf_counter() - begun_s
        return self._logits[:done]

    def decode_ahead(self, feed: Feed, *, steps: int, ends: Collection[int], seconds: float) -> list[GreedyStep]:
        """Greedy steps without returning to Python in between; none if two like the last one would take too long."""
        if 2 * self._step_s > seconds:
            return []
        begun_s = time.perf_counter()
        self._fill(feed.tokens, feed.positions, feed.slots, feed.wanted)
        rows = len(feed.tokens)
        tokens, max_logits = (ctypes.c_int64 * (steps * rows))(), (ctypes.c_float * (steps * rows))()
        ahead = native.Ahead(
            steps=steps,
            ends=len(ends),
            end_tokens=(ctypes.c_int64 * len(ends))(*ends),
            seconds=seconds,
            tokens=tokens,
            max_logits=max_logits,
        )
        made = self._library.decode_ahead(
            self._decoder, self._rows.structure, self._workspace, self._pool, self._logits.data_ptr(), ahead
        )
        self._step_s = (time.perf_counter() - begun_s) / made
        each = (slice(step * rows, (step + 1) * rows) for step in range(made))
        return [GreedyStep(tokens=tokens[its], max_logits=max_logits[its]) for its in each]

    def reorder(self, targets: Collection[int], origins: Collection[int], length: int) -> None:
        """Give each target its origin's decoded state. A state is copied only if more than one target wants it."""
        states = [self._own[origin] for origin in origins]
        spare = [self._own[target] for target in targets if self._own[target] not in states]
        taken: set[int] = set()
        for target, state in zip(targets, states, strict=True):
            if state in taken:
                copy = spare.pop()
                self._copy_state(state, copy, length)
                state = copy
            taken.add(state)
            self._own[target] = state

    def move(self, origin: int, target: int, *, source_length: int, length: int) -> None:
        """Swap places; nothing is copied."""
        del source_length, length
        for by_slot in (self._own, self._source, self._source_lengths):
            by_slot[origin], by_slot[target] = by_slot[target], by_slot[origin]

    def clear(self, slot: int) -> None:
        """Nothing to do: positions beyond a sequence's end are never read."""

    def _free_places(self, newcomers: Iterable[int]) -> Iterator[int]:
        """The places where these slots' sources may go.

        Samples of one source end one by one: a place that any other slot reads stays, whichever sample was first.
        """
        own = set(newcomers)
        read = {place for slot, place in enumerate(self._source) if slot not in own}
        return (place for place in range(len(self._source)) if place not in read)

    def _set_source(self, slots: Collection[int], place: int, length: int) -> None:
        for slot in slots:
            self._source[slot] = place
            self._source_lengths[slot] = length

    def _fill(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int], wanted: Sequence[int]
    ) -> None:
        self._rows.fill(
            tokens=tokens,
            positions=positions,
            slots=[self._own[slot] for slot in slots],
            lengths=[self._source_lengths[slot] for slot in slots],
            memory_slots=[self._source[slot] for slot in slots],
            wanted_rows=wanted,
        )

    def _encode_batch(self, batch: list[tuple[list[int], int]]) -> None:
        blocks = [0, *itertools.accumulate(-(-len(source) // LANES) for source, _ in batch)]
        each = [(source, place, block) for (source, place), block in zip(batch, blocks, strict=False)]
        self._rows.fill(
            tokens=[token for source, _ in batch for token in source],
            positions=[position for source, _ in batch for position in range(len(source))],
            slots=[block for source, _, block in each for _ in source],
            lengths=[len(source) for source, _ in batch for _ in source],
            memory_slots=[place for source, place in batch for _ in source],
        )
        progress = native.NativeProgress(block=_BLOCK_ROWS)
        self._library.encode(
            self._encoder, self._decoder, self._rows.structure, self._workspace, self._pool, progress, math.inf
        )

    def _copy_state(self, origin: int, target: int, length: int) -> None:
        blocks = -(-length // LANES)
        for keys_and_values in self._own_state:
            for by_slot in keys_and_values:
                by_slot[target, :, :blocks].copy_(by_slot[origin, :, :blocks])


def _weight_bytes(spec: ModelSpec, config: EngineConfig) -> int:
    """Roughly what the weights will take: packed they are a little larger, and a tied output matrix exists beside its
    embedding, because a norm is folded into it.
    """
    tensors = sum(math.prod(shape) for _, shape in layout_of(spec).shapes())
    in_layers, in_output, looked_up = _BYTES[config.dtype]
    embedding, output = spec.vocab_size * spec.width, spec.target_vocab_size * spec.width
    return math.ceil((tensors - embedding) * in_layers + output * in_output + embedding * looked_up)


def _check_memory(weights: int, caches: int, config: EngineConfig) -> None:
    available = available_bytes(torch.device("cpu"))
    if weights + caches > available:
        raise LoadError(
            f"{weights / 1e6:.0f} MB of weights and the caches of {config.slots - config.spare_slots} slots with "
            f"{config.max_source_tokens} source and {config.max_new_tokens} new tokens need "
            f"{(weights + caches) / 1e6:.0f} MB, but {available / 1e6:.0f} MB are free: lower one of the three"
        )
