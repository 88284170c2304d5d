"""From a network to the operator's structures, with weights and caches in the operator's layout.

Axes: O outputs and I inputs of a matrix, G groups of inputs, D model width, V vocabulary, P positions, H heads of one
layer, K buckets of distance, R distances.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.interface.config import EngineConfig
from server.engine.native.arena import Arena
from server.engine.native.operator import library as native
from server.engine.weights import network
from server.engine.weights.relative_positions import bias_rows

DTYPES = {"float32": native.FLOAT32, "bfloat16": native.BFLOAT16, "int8": native.INT8, "int4": native.INT4}

LANES = 16  # numbers the operator works on at once; a slot's positions come in such blocks


class CachePlan:
    """The sizes of the caches."""

    def __init__(self, net: network.Network, config: EngineConfig) -> None:
        half = config.dtype != "float32"
        self.dtype = torch.bfloat16 if half else torch.float32
        self.width = net.head_dim + net.head_dim % 2 if half else net.head_dim  # bfloat16 comes in pairs
        self.slots = config.slots
        self.own_capacity = blocks_of(config.max_new_tokens + 1)
        self.source_capacity = blocks_of(config.max_source_tokens)
        # The encoder's own keys and values last for one layer of one pass: sources side by side, in whole blocks.
        most_rows = max(config.max_encode_tokens, config.max_source_tokens)
        whole = blocks_of(most_rows + LANES * min(most_rows, config.slots))
        self.slice_block = whole // LANES  # after them, a source encoded in slices
        self.encoder_capacity = whole + self.source_capacity
        self.encoder_heads = max((len(heads) for heads in net.encoder_heads), default=0)
        own = sum(len(heads) for heads in net.self_heads) * self.own_capacity * config.slots
        source = sum(len(heads) for heads in net.cross_heads) * self.source_capacity * config.slots
        encoder = self.encoder_heads * self.encoder_capacity
        self.nbytes = 2 * (own + source + encoder) * self.width * self.dtype.itemsize


class StackBuilder:
    """From a network to the operator's structures."""

    def __init__(
        self,
        library: native.Library,
        net: network.Network,
        dtype: int,
        weights: Arena,
        caches: Arena,
        plan: CachePlan,
    ) -> None:
        self._library = library
        self._net = net
        self._dtype = dtype
        self._weights = weights
        self._caches = caches
        self._plan = plan
        self.kept: list[object] = []
        self.own_state: list[tuple[Tensor, Tensor]] = []
        self.source_state: list[tuple[Tensor, Tensor]] = []
        self.widest_attention = self.widest_units = 1
        self._embeddings: dict[int, Tensor] = {}
        scratch = plan.encoder_heads * plan.encoder_capacity * plan.width
        self._encoder_keys, self._encoder_values = (caches.take(scratch, plan.dtype) for _ in range(2))

    def encoder(self) -> native.Stack:
        """The encoder's stack."""
        stack, side = self._stack(self._net.encoder), self._net.encoder
        layers = []
        for weights, table_KH in zip(side.layers, side.position_biases_KH, strict=True):
            layer = native.Layer()
            if weights.attention is not None:
                layer.self = self._attention(weights.attention)
                self._set_bias(layer.self, weights.attention.heads, table_KH, self._plan.source_capacity, causal=False)
                layer.self.keys, layer.self.values = self._encoder_keys.data_ptr(), self._encoder_values.data_ptr()
                layer.self.slot_stride = LANES * self._plan.width  # a source begins at a block
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
        for weights, table_KH in zip(side.layers, side.position_biases_KH, strict=True):
            layer = native.Layer()
            if weights.attention is not None:
                layer.self = self._attention(weights.attention)
                self._set_bias(layer.self, weights.attention.heads, table_KH, self._plan.own_capacity, causal=True)
                self.own_state.append(self._allocate(layer.self, self._plan.own_capacity))
            if weights.cross is not None:
                layer.cross = self._attention(weights.cross)
                self.source_state.append(self._allocate(layer.cross, self._plan.source_capacity))
            if weights.ffn is not None:
                layer.ffn = self._feed_forward(weights.ffn)
            layers.append(layer)
        output = self._net.output()
        stack.output = self._matrix(output)
        return self._with_layers(stack, layers)

    def _stack(self, side: network.StackWeights[network.Layer]) -> native.Stack:
        net = self._net
        stack = native.Stack(
            width=net.width,
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
            self.kept.append(table_VD)  # else its id might become another table's
        return self._embeddings[id(table_VD)].data_ptr()

    def _attention(self, weights: network.AttentionWeights) -> native.NativeAttention:
        attention = native.NativeAttention(heads=len(weights.heads))
        self.widest_attention = max(self.widest_attention, len(weights.heads) * self._net.head_dim)
        if weights.heads:
            attention.queries = self._matrix(weights.query)
            attention.keys_values = self._matrix(_joined(weights.key, weights.value))
        attention.out = self._matrix(weights.out)
        attention.after = self._norm(weights.after)
        return attention

    def _set_bias(
        self,
        attention: native.NativeAttention,
        heads: network.Heads,
        table_KH: Tensor | None,
        reach: int,
        *,
        causal: bool,
    ) -> None:
        """Give an attention its bias [H, 2*reach], for keys 1 - reach, ..., reach positions after the query."""
        if table_KH is None or not heads:
            return
        relative_R = torch.arange(1 - reach, reach + 1)
        rows_HR = bias_rows(
            table_KH, heads, relative_R, bidirectional=not causal, max_distance=self._net.relative_max_distance
        )
        attention.bias, attention.reach = self._keep(rows_HR), reach

    def _allocate(self, attention: native.NativeAttention, capacity: int) -> tuple[Tensor, Tensor]:
        """Give an attention its cache: keys and values by slot and head, in blocks of positions."""
        heads, width, plan = attention.heads, self._plan.width, self._plan
        keys, values = (self._caches.take(plan.slots * heads * capacity * width, plan.dtype) for _ in range(2))
        attention.keys, attention.values = keys.data_ptr(), values.data_ptr()
        attention.slot_stride, attention.head_stride = heads * capacity * width, capacity * width
        blocks = (plan.slots, heads, capacity // LANES, LANES * width)
        return keys.view(blocks), values.view(blocks)

    def _feed_forward(self, weights: network.FeedForwardWeights) -> native.NativeFeedForward:
        self.widest_units = max(self.widest_units, len(weights.into.weight_OI))
        ffn = native.NativeFeedForward(
            into=self._matrix(weights.into),
            out=self._matrix(weights.out),
            after=self._norm(weights.after),
        )
        if weights.gate is not None:
            ffn.gate = self._matrix(weights.gate)
        return ffn

    def _matrix(self, linear: network.Linear) -> native.NativeMatrix:
        """In the builder's dtype; with int4, the uncalibrated output matrix is int8."""
        outputs, inputs = linear.weight_OI.shape
        lanes = -(-outputs // native.TILE) * native.TILE
        dtype = native.INT8 if self._dtype == native.INT4 and linear.int4 is None else self._dtype
        matrix = native.NativeMatrix(outputs=outputs, inputs=inputs, dtype=dtype)
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

    def _norm(self, norm: network.Norm | None) -> native.NativeNorm:
        if norm is None:
            return native.NativeNorm()
        return native.NativeNorm(
            gain=self._keep(norm.gain_D), shift=None if norm.shift_D is None else self._keep(norm.shift_D)
        )

    def _keep(self, tensor: Tensor) -> int:
        kept = self._weights.take(tensor.numel(), torch.float32)
        kept.view(tensor.shape).copy_(tensor)
        return kept.data_ptr()


def _joined(first: network.Linear, second: network.Linear) -> network.Linear:
    """Two maps without bias as one: the first's outputs, then the second's."""
    int4 = None
    if first.int4 is not None and second.int4 is not None:
        int4 = network.Int4Weights(
            nibbles_OGB=torch.cat((first.int4.nibbles_OGB, second.int4.nibbles_OGB)),
            steps_OG=torch.cat((first.int4.steps_OG, second.int4.steps_OG)),
        )
    weight_OI = torch.cat((first.weight_OI, second.weight_OI))
    return network.Linear(weight_OI=weight_OI, bias_O=None, int4=int4)


def int4_tiles(int4: network.Int4Weights) -> Tensor:
    """The weights as the operator reads them, as one run of bytes: for each tile and group its steps, then its nibbles.

    A tile's outputs are side by side, so that a register holds four inputs of each.
    """
    outputs, groups = int4.steps_OG.shape
    missing = -outputs % native.TILE
    # Beyond the last output, steps are 0 and nibbles 8, which stands for 0.
    steps_TOG = F.pad(int4.steps_OG, (0, 0, 0, missing)).view(-1, native.TILE, groups)
    nibbles = F.pad(int4.nibbles_OGB, (0, 0, 0, 0, 0, missing), value=0x88).view(-1, native.TILE, groups, 4, 4)
    steps = steps_TOG.transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat((steps, nibbles.permute(0, 2, 3, 1, 4).flatten(2)), dim=2).flatten()


def blocks_of(positions: int) -> int:
    """The number of positions, rounded up to whole blocks."""
    return -(-positions // LANES) * LANES
