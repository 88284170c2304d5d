"""The backend over the native operator.

Axes: O outputs and I inputs of a matrix, D model width, V vocabulary, P positions, H heads of one layer, E width of a
head, C capacity of a slot in positions, K buckets of distance.
"""

import ctypes
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model_store.spec import ModelSpec
from server.engine import network
from server.engine.backend import Feed, GreedyStep
from server.engine.cpus import usable_cpus
from server.engine.errors import LoadError
from server.engine.memory import available_bytes
from server.engine.native import library as native
from server.engine.native.arena import Arena
from server.engine.native.rows import RowBuffer, make_workspace, with_hidden
from server.engine.position_bias import relative_bucket
from server.engine.sequence import EngineConfig
from server.engine.topology import default_threads
from server.engine.weights import open_network

DTYPES = {"float32": native.FLOAT32, "bfloat16": native.BFLOAT16, "int8": native.INT8, "int4": native.INT4}

# A weight's: in the layers, in the output matrix, in the embedding.
_BYTES = {"float32": (4, 4, 4), "bfloat16": (2, 2, 2), "int8": (1, 1, 2), "int4": (18 / 32, 1, 2)}

_BLOCK_ROWS = 64  # positions that go through a layer together; their feed-forward units stay in the cache
_MOST_REFUSED = 8  # slices that are too short for a block of rows, one after the other
_LANES = 16  # numbers that the operator works on at once; positions of a slot come in such blocks


class NativeBackend:
    """A loaded network on the CPU. One thread owns it; the operator has threads of its own."""

    has_own_threads = True

    @classmethod
    def load(cls, directory: Path, spec: ModelSpec, config: EngineConfig) -> "NativeBackend":
        """Load `model.safetensors` of a model of the shape `spec`; `capabilities` says whether that can be.

        Raises:
            LoadError: the file is missing or broken, its tensors are not those of `spec`, or the caches do not fit
                into the memory that is left.
        """
        longest = max(config.max_source_tokens, config.max_new_tokens + 1)
        cpu = torch.device("cpu")
        int4 = config.dtype == "int4"
        with open_network(directory, spec, dtype=torch.float32, device=cpu, longest=longest, int4=int4) as net:
            _check_memory(_weight_bytes(spec, config), _CachePlan(net, config).nbytes, config)
            return cls(net, config)

    def __init__(self, net: network.Network, config: EngineConfig) -> None:
        """Pack the weights and allocate everything that a step will need; callers use `load`."""
        found = native.library()
        assert found is not None, "callers ask capabilities.why_not_native first"
        self._library = found
        threads = config.threads or default_threads(usable_cpus())
        cache = _CachePlan(net, config)
        self._weights, self._caches = Arena(), Arena()
        builder = _Builder(found, net, DTYPES[config.dtype], self._weights, self._caches, cache)
        self._encoder, self._decoder = builder.encoder(), builder.decoder()
        self._own_state = builder.own_state
        self._structures = builder.kept  # what the structures point to
        self._rows = RowBuffer(max(config.slots, config.max_encode_tokens, config.max_source_tokens))
        self._workspace = make_workspace(
            self._caches,
            rows=self._rows.capacity,
            threads=threads,
            width=net.d_model,
            widest_attention=builder.widest_attention,
            widest_units=builder.widest_units,
            widest_input=max(net.d_model, builder.widest_attention, builder.widest_units),
            longest_scores=max(cache.own_capacity, cache.source_capacity),
            head_dim=net.head_dim,
        )
        # Of a source that is encoded in slices.
        self._slice_rows = RowBuffer(config.max_source_tokens)
        self._slice_hidden = self._caches.take(config.max_source_tokens * net.d_model, torch.float32)
        self._slice_workspace = with_hidden(self._workspace, self._slice_hidden)
        self._slice_block = cache.slice_block
        self._progress: native.Progress | None = None
        self._row_seconds = native.RowSeconds()  # what rows took lately
        self._refused = 0  # how often in a row a slice was too short for a block of rows
        self._logits = self._caches.take(config.slots * net.vocab_size, torch.float32).view(config.slots, -1)
        self._pool = native.create_pool(found, threads)
        # By slot: where its decoded state is, and where the source that it reads is.
        self._own = list(range(config.slots))
        self._source = list(range(config.slots))
        self._source_lengths = [0] * config.slots

    def __del__(self) -> None:
        if hasattr(self, "_pool"):
            self._library.pool_destroy(self._pool)

    def hold_threads(self, threads: int) -> None:
        """Compute with exactly so many threads, at most those of the configuration; 0: with as many as pay."""
        self._library.pool_hold(self._pool, threads)

    def active_threads(self) -> int:
        """How many computed the last pass."""
        active: int = self._library.pool_active(self._pool)
        return active

    @property
    def path(self) -> None:
        """Nothing is replayed here."""
        return None

    def memory_bytes(self) -> dict[str, int]:
        """Fixed for the life of the backend: `weights` and `cache`, in which the work space counts."""
        return {"weights": self._weights.taken_bytes, "cache": self._caches.taken_bytes}

    def encode(self, sources: Collection[list[int]], slots: Collection[Collection[int]]) -> int:
        """Encode sources, each into all of its slots; nothing is padded, so the answer is 0."""
        free = self._free_places(slot for own in slots for slot in own)
        batch: list[tuple[list[int], int]] = []  # sources and where their keys and values go
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

    def begin_source(self, source: list[int], slots: Collection[int]) -> None:
        """Take a source for its slots, to be encoded in slices."""
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
        self._progress = native.Progress(block=_BLOCK_ROWS, row_seconds=self._row_seconds)

    def go_on(self, seconds: float | None) -> bool:
        """Encode the source that was begun for about so long, or to its end; returns whether it is there."""
        assert self._progress is not None, "no source was begun"
        if self._refused == _MOST_REFUSED:  # whatever a block takes, or seemed to take, a source does not wait for ever
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
        """Give up the source that was begun: its place is written no more."""
        self._progress = None

    def decode(self, feed: Feed) -> Tensor:
        """Logits [wanted, V] in float32; valid until the next call."""
        capacity, done = self._rows.capacity, 0
        for start in range(0, len(feed.tokens), capacity):  # as a rule once: rows may come one after the other
            stop = min(start + capacity, len(feed.tokens))
            slots, wanted = feed.slots[start:stop], [row - start for row in feed.wanted if start <= row < stop]
            self._fill(feed.tokens[start:stop], feed.positions[start:stop], slots, wanted)
            out = self._logits[done:].data_ptr()
            self._library.decode(self._decoder, self._rows.structure, self._workspace, self._pool, out)
            done += len(wanted)
        return self._logits[:done]

    def decode_ahead(self, feed: Feed, *, steps: int, ends: Collection[int], seconds: float) -> list[GreedyStep]:
        """Greedy steps without coming back to Python in between."""
        self._fill(feed.tokens, feed.positions, feed.slots, feed.wanted)
        rows = len(feed.tokens)
        tokens, peaks = (ctypes.c_int64 * (steps * rows))(), (ctypes.c_float * (steps * rows))()
        ahead = native.Ahead(
            steps=steps,
            ends=len(ends),
            end_tokens=(ctypes.c_int64 * len(ends))(*ends),
            seconds=seconds,
            tokens=tokens,
            peaks=peaks,
        )
        made = self._library.decode_ahead(
            self._decoder, self._rows.structure, self._workspace, self._pool, self._logits.data_ptr(), ahead
        )
        each = (slice(step * rows, (step + 1) * rows) for step in range(made))
        return [GreedyStep(tokens=tokens[its], peaks=peaks[its]) for its in each]

    def reorder(self, targets: Collection[int], origins: Collection[int], length: int) -> None:
        """Give each target its origin's decoded state. Only a state that two targets want is copied."""
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
        """Change places: nothing is copied."""
        del source_length, length
        for by_slot in (self._own, self._source, self._source_lengths):
            by_slot[origin], by_slot[target] = by_slot[target], by_slot[origin]

    def clear(self, slot: int) -> None:
        """Nothing to do: positions beyond a sequence's end are never read."""

    def _free_places(self, newcomers: Iterable[int]) -> Iterator[int]:
        """Where sources of these slots may be put.

        Samples of one source end one by one: what any other slot reads stays, whichever of them was the first.
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
        blocks = [0, *itertools.accumulate(-(-len(source) // _LANES) for source, _ in batch)]
        each = [(source, place, block) for (source, place), block in zip(batch, blocks, strict=False)]
        self._rows.fill(
            tokens=[token for source, _ in batch for token in source],
            positions=[position for source, _ in batch for position in range(len(source))],
            slots=[block for source, _, block in each for _ in source],
            lengths=[len(source) for source, _ in batch for _ in source],
            memory_slots=[place for source, place in batch for _ in source],
        )
        progress = native.Progress(block=_BLOCK_ROWS)
        self._library.encode(
            self._encoder, self._decoder, self._rows.structure, self._workspace, self._pool, progress, math.inf
        )

    def _copy_state(self, origin: int, target: int, length: int) -> None:
        blocks = -(-length // _LANES)
        for keys_and_values in self._own_state:
            for by_slot in keys_and_values:
                by_slot[target, :, :blocks].copy_(by_slot[origin, :, :blocks])


class _CachePlan:
    """Sizes of the caches."""

    def __init__(self, net: network.Network, config: EngineConfig) -> None:
        half = config.dtype != "float32"
        self.dtype = torch.bfloat16 if half else torch.float32
        self.width = net.head_dim + net.head_dim % 2 if half else net.head_dim  # bfloat16 comes in pairs
        self.slots = config.slots
        self.own_capacity = _blocks(config.max_new_tokens + 1)
        self.source_capacity = _blocks(config.max_source_tokens)
        # The encoder's own keys and values live for one layer of one pass: sources side by side, in whole blocks.
        most_rows = max(config.max_encode_tokens, config.max_source_tokens)
        whole = _blocks(most_rows + _LANES * min(most_rows, config.slots))
        self.slice_block = whole // _LANES  # behind them, a source that is encoded in slices
        self.encoder_capacity = whole + self.source_capacity
        self.encoder_heads = max((len(heads) for heads in net.encoder_heads), default=0)
        own = sum(len(heads) for heads in net.self_heads) * self.own_capacity * config.slots
        source = sum(len(heads) for heads in net.cross_heads) * self.source_capacity * config.slots
        encoder = self.encoder_heads * self.encoder_capacity
        self.nbytes = 2 * (own + source + encoder) * self.width * self.dtype.itemsize


def _weight_bytes(spec: ModelSpec, config: EngineConfig) -> int:
    """What the weights will take, about: packed they are a little larger, and an output matrix is there beside the
    embedding that it is tied to, because a norm is folded into it.
    """
    tensors = sum(math.prod(shape) for _, shape in spec.tensor_shapes())
    in_layers, in_output, looked_up = _BYTES[config.dtype]
    embedding, output = spec.vocab_size * spec.d_model, spec.target_vocab_size * spec.d_model
    return math.ceil((tensors - embedding) * in_layers + output * in_output + embedding * looked_up)


def _check_memory(weights: int, caches: int, config: EngineConfig) -> None:
    available = available_bytes(torch.device("cpu"))
    if weights + caches > available:
        raise LoadError(
            f"{weights / 1e6:.0f} MB of weights and the caches of {config.slots} slots with "
            f"{config.max_source_tokens} source and {config.max_new_tokens} new tokens need "
            f"{(weights + caches) / 1e6:.0f} MB, but {available / 1e6:.0f} MB are free: lower one of the three"
        )


class _Builder:
    """From a network to the operator's structures."""

    def __init__(
        self,
        library: native.Library,
        net: network.Network,
        dtype: int,
        weights: Arena,
        caches: Arena,
        plan: _CachePlan,
    ) -> None:
        self._library = library
        self._net = net
        self._dtype = dtype
        self._weights = weights
        self._caches = caches
        self._plan = plan
        self.kept: list[object] = []
        self.own_state: list[tuple[Tensor, Tensor]] = []
        self.widest_attention = self.widest_units = 1
        self._embeddings: dict[int, Tensor] = {}
        scratch = plan.encoder_heads * plan.encoder_capacity * plan.width
        self._encoder_keys, self._encoder_values = (caches.take(scratch, plan.dtype) for _ in range(2))

    def encoder(self) -> native.Stack:
        """The encoder's stack."""
        stack, side = self._stack(self._net.encoder), self._net.encoder
        layers = []
        for weights in side.layers:
            layer = native.Layer()
            if weights.attention is not None:
                layer.self = self._attention(weights.attention)
                self._set_bias(layer.self, weights.attention.heads, side, self._plan.source_capacity, causal=False)
                layer.self.keys, layer.self.values = self._encoder_keys.data_ptr(), self._encoder_values.data_ptr()
                layer.self.slot_stride = _LANES * self._plan.width  # a source begins with a block
                layer.self.head_stride = self._plan.encoder_capacity * self._plan.width
            if weights.ffn is not None:
                layer.ffn = self._feed_forward(weights.ffn)
            layers.append(layer)
        return self._with_layers(stack, layers)

    def decoder(self) -> native.Stack:
        """The decoder's stack, with its caches and the output matrix."""
        stack, side = self._stack(self._net.decoder), self._net.decoder
        stack.causal = 1
        if self._net.unplaced_token is not None:
            stack.unplaced_token = self._net.unplaced_token
        layers = []
        for weights in side.layers:
            layer = native.Layer()
            if weights.attention is not None:
                layer.self = self._attention(weights.attention)
                self._set_bias(layer.self, weights.attention.heads, side, self._plan.own_capacity, causal=True)
                self.own_state.append(self._allocate(layer.self, self._plan.own_capacity))
            if weights.cross is not None:
                layer.cross = self._attention(weights.cross)
                self._allocate(layer.cross, self._plan.source_capacity)
            if weights.ffn is not None:
                layer.ffn = self._feed_forward(weights.ffn)
            layers.append(layer)
        output = self._net.output()
        stack.output = self._matrix(output)
        return self._with_layers(stack, layers)

    def _stack(self, side: network.StackWeights[network.Layer]) -> native.Stack:
        net = self._net
        stack = native.Stack(
            width=net.d_model,
            head_dim=net.head_dim,
            activation=native.ACTIVATIONS[net.activation],
            layer_norm=net.norm == "layer",
            norm_first=net.norm_first,
            half=self._plan.dtype == torch.bfloat16,
            eps=net.norm_eps,
            embedding_scale=side.embedding_scale,
            embedding=self._embedding(side.embedding_VD),
            unplaced_token=-1,
        )
        if side.positions_PD is not None:
            stack.positions = self._keep(side.positions_PD)
        stack.embedding_norm = self._norm(side.embedding_norm)
        return stack

    def _with_layers(self, stack: native.Stack, layers: list[native.Layer]) -> native.Stack:
        array = (native.Layer * len(layers))(*layers)
        self.kept.append(array)
        stack.layers = len(layers)
        stack.layer = ctypes.cast(array, ctypes.POINTER(native.Layer))
        return stack

    def _embedding(self, table_VD: Tensor) -> int:
        if id(table_VD) not in self._embeddings:
            kept = self._weights.take(table_VD.numel(), self._plan.dtype).view(table_VD.shape)
            kept.copy_(table_VD)
            self._embeddings[id(table_VD)] = kept
            self.kept.append(table_VD)  # or its id might be another table's
        return self._embeddings[id(table_VD)].data_ptr()

    def _attention(self, weights: network.AttentionWeights) -> native.Attention:
        attention = native.Attention(heads=len(weights.heads))
        self.widest_attention = max(self.widest_attention, len(weights.heads) * self._net.head_dim)
        if weights.heads:
            attention.queries = self._matrix(weights.query)
            attention.keys_values = self._matrix(_joined(weights.key, weights.value))
        attention.out = self._matrix(weights.out)
        attention.after = self._norm(weights.after)
        return attention

    def _set_bias(
        self,
        attention: native.Attention,
        heads: network.Heads,
        side: network.StackWeights[network.Layer],
        reach: int,
        *,
        causal: bool,
    ) -> None:
        """Give an attention its bias [H, 2*reach]: that of a key 1 - reach, ..., reach positions after the query."""
        table_KH = side.position_bias_KH
        if table_KH is None or not heads:
            return
        relative = torch.arange(1 - reach, reach + 1)
        bucket = relative_bucket(
            relative,
            bidirectional=not causal,
            buckets=table_KH.shape[0],
            max_distance=self._net.relative_max_distance,
        )
        attention.bias, attention.reach = self._keep(table_KH[bucket][:, list(heads)].t()), reach

    def _allocate(self, attention: native.Attention, capacity: int) -> tuple[Tensor, Tensor]:
        """Give an attention its cache; keys and values by slot and head, in blocks of positions."""
        heads, width, plan = attention.heads, self._plan.width, self._plan
        keys, values = (self._caches.take(plan.slots * heads * capacity * width, plan.dtype) for _ in range(2))
        attention.keys, attention.values = keys.data_ptr(), values.data_ptr()
        attention.slot_stride, attention.head_stride = heads * capacity * width, capacity * width
        blocks = (plan.slots, heads, capacity // _LANES, _LANES * width)
        return keys.view(blocks), values.view(blocks)

    def _feed_forward(self, weights: network.FeedForwardWeights) -> native.FeedForward:
        self.widest_units = max(self.widest_units, len(weights.into.weight_OI))
        ffn = native.FeedForward(
            into=self._matrix(weights.into),
            out=self._matrix(weights.out),
            after=self._norm(weights.after),
        )
        if weights.gate is not None:
            ffn.gate = self._matrix(weights.gate)
        return ffn

    def _matrix(self, linear: network.Linear) -> native.Matrix:
        """In the builder's dtype; of int4 what was not calibrated is int8: the output matrix."""
        outputs, inputs = linear.weight_OI.shape
        lanes = -(-outputs // native.TILE) * native.TILE
        dtype = native.INT8 if self._dtype == native.INT4 and linear.int4 is None else self._dtype
        matrix = native.Matrix(outputs=outputs, inputs=inputs, dtype=dtype)
        if linear.int4 is not None:
            tiles = int4_tiles(linear.int4)
            packed = self._weights.take(tiles.numel(), torch.uint8)
            packed.copy_(tiles)
            matrix.weights = packed.data_ptr()
        else:
            weight_OI = linear.weight_OI.to(torch.float32).contiguous()
            matrix.weights = self._weights.take(
                self._library.packed_bytes(outputs, inputs, dtype), torch.uint8
            ).data_ptr()
            if dtype == native.INT8:
                matrix.scales = self._weights.take(lanes, torch.float32).data_ptr()
                matrix.offsets = self._weights.take(lanes, torch.int32).data_ptr()
            self._library.pack(
                weight_OI.data_ptr(), outputs, inputs, dtype, matrix.weights, matrix.scales, matrix.offsets
            )
        if linear.bias_O is not None:
            bias = self._weights.take(lanes, torch.float32)
            bias[:outputs] = linear.bias_O
            matrix.bias = bias.data_ptr()
        return matrix

    def _norm(self, norm: network.Norm | None) -> native.Norm:
        if norm is None:
            return native.Norm()
        return native.Norm(
            gain=self._keep(norm.gain_D), shift=None if norm.shift_D is None else self._keep(norm.shift_D)
        )

    def _keep(self, tensor: Tensor) -> int:
        kept = self._weights.take(tensor.numel(), torch.float32)
        kept.view(tensor.shape).copy_(tensor)
        return kept.data_ptr()


def _joined(first: network.Linear, second: network.Linear) -> network.Linear:
    """The outputs of two maps without bias, one after the other."""
    int4 = None
    if first.int4 is not None and second.int4 is not None:
        int4 = network.Int4Weights(
            nibbles_OGB=torch.cat((first.int4.nibbles_OGB, second.int4.nibbles_OGB)),
            steps_OG=torch.cat((first.int4.steps_OG, second.int4.steps_OG)),
        )
    weight_OI = torch.cat((first.weight_OI, second.weight_OI))
    return network.Linear(weight_OI=weight_OI, bias_O=None, int4=int4)


def int4_tiles(int4: network.Int4Weights) -> Tensor:
    """The weights as the operator reads them, all bytes in a row: for each tile and group its steps, then its nibbles.

    A tile's outputs are side by side, so that a register holds four inputs of each.
    """
    outputs, groups = int4.steps_OG.shape
    missing = -outputs % native.TILE
    # Beyond the last output steps are 0, and nibbles 8, which count as 0.
    steps_TOG = F.pad(int4.steps_OG, (0, 0, 0, missing)).view(-1, native.TILE, groups)
    nibbles = F.pad(int4.nibbles_OGB, (0, 0, 0, 0, 0, missing), value=0x88).view(-1, native.TILE, groups, 4, 4)
    steps = steps_TOG.transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat((steps, nibbles.permute(0, 2, 3, 1, 4).flatten(2)), dim=2).flatten()


def _blocks(positions: int) -> int:
    return -(-positions // _LANES) * _LANES
