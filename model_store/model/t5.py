"""T5's layout: T5, v1.1, FLAN, ByT5, MADLAD-400, Aya-101 and mT5.

The token embedding is `shared.weight`, whatever copies of it a checkpoint contains. The table of relative positions is
in a stack's first block, even if that block has no heads left.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from model_store.model import config_fields as fields
from model_store.model.config_fields import bad
from model_store.model.families import ACTIVATIONS, Family
from model_store.model.layout import STACKS, Kind, Layout, Shapes, Stack, SublayerNames

_ATTENTION = {"self_attention": (0, "SelfAttention"), "cross_attention": (1, "EncDecAttention")}


class T5Layout(Layout):
    """Norms first, no biases, relative positions in the attention scores, which are not scaled."""

    layers_keys: ClassVar[Mapping[Stack, str]] = {"encoder": "num_layers", "decoder": "num_decoder_layers"}
    biases = False
    scaled_scores = False
    norm_eps_key = "layer_norm_epsilon"
    output = "lm_head"
    logits_bias = None

    @classmethod
    def widths(cls, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
        """Read T5's keys."""
        ffn_kind = fields.text(config, "feed_forward_proj", family.feed_forward)
        gated = ffn_kind.startswith("gated-")
        activation = ffn_kind.removeprefix("gated-")
        if gated and activation == "gelu":
            activation = "gelu_new"  # the T5 v1.1 convention
        if activation not in ACTIVATIONS.values():
            wanted = "relu, gelu, gelu_new or silu, with or without 'gated-' before it"
            raise bad("feed_forward_proj", ffn_kind, wanted)
        vocab_size = fields.count(config, "vocab_size", most=fields.MOST_TOKENS)
        d_ff = fields.count(config, "d_ff", most=fields.MOST_UNITS)
        # transformers 5 writes scale_decoder_outputs; older files express the same by tie_word_embeddings.
        tied = fields.flag(config, "tie_word_embeddings", default=True)
        scaled = fields.flag(config, "scale_decoder_outputs", default=tied)
        # Half of the buckets (a quarter in the encoder) cover single distances; the others extend to the longest.
        buckets = fields.count(config, "relative_attention_num_buckets", 32, most=fields.MOST_POSITIONS)
        if buckets < 4:
            raise bad("relative_attention_num_buckets", buckets, "at least 4")
        max_distance = fields.count(config, "relative_attention_max_distance", 128)
        if max_distance <= buckets // 2:
            wanted = f"above {buckets // 2}, half of relative_attention_num_buckets"
            raise bad("relative_attention_max_distance", max_distance, wanted)
        return {
            "vocab_size": vocab_size,
            "target_vocab_size": vocab_size,
            "d_model": fields.count(config, "d_model", most=fields.MOST_WIDTH),
            "head_dim": fields.count(config, "d_kv", most=fields.MOST_WIDTH),
            "num_heads": fields.count(config, "num_heads", most=fields.MOST_LAYERS_OR_HEADS),
            "d_ff": d_ff,
            "decoder_d_ff": d_ff,
            "activation": activation,
            "gated_ffn": gated,
            "relative_buckets": buckets,
            "relative_max_distance": max_distance,
            "max_positions": None,
            "layer_norm_eps": fields.positive(config, cls.norm_eps_key, 1e-6),
            "scale_embedding": False,
            "scale_logits": scaled if family.scales_logits is None else family.scales_logits,
            "shared_embedding": True,
            "tied_output": True,
        }

    @classmethod
    def layer_counts(cls, config: Mapping[str, Any]) -> tuple[int, int]:
        """If the config gives no decoder depth, the decoder is as deep as the encoder."""
        decoder = cls.layers_keys["decoder"]
        if config.get(decoder) is None:
            config = {**config, decoder: config.get(cls.layers_keys["encoder"])}
        return super().layer_counts(config)

    def output_config(self, *, own: bool) -> dict[str, bool]:
        """Older versions of transformers trust this flag; version 5 looks at the tensors and always writes true."""
        return {"tie_word_embeddings": not own}

    def layers(self, stack: Stack) -> str:
        """The module list of a stack's blocks."""
        return f"{stack}.block"

    def sublayer(self, stack: Stack, layer: int, kind: Kind) -> SublayerNames:
        """A block's `layer` list holds its sublayers by number."""
        place = f"{self.layers(stack)}.{layer}.layer"
        if kind == "feed_forward":
            place = f"{place}.{1 if stack == 'encoder' else 2}"
            matrices = ("wi_0", "wi_1") if self.spec.gated_ffn else ("wi",)
            inputs = tuple(f"{place}.DenseReluDense.{name}" for name in matrices)
            return SublayerNames(inputs=inputs, out=f"{place}.DenseReluDense.wo", norm=f"{place}.layer_norm")
        number, module = _ATTENTION[kind]
        place = f"{place}.{number}"
        inputs = tuple(f"{place}.{module}.{name}" for name in "qkv")
        return SublayerNames(inputs=inputs, out=f"{place}.{module}.o", norm=f"{place}.layer_norm")

    def embeddings(self, stack: Stack) -> tuple[str, ...]:
        """The one embedding of both stacks."""
        del stack
        return ("shared",)

    def final_norm(self, stack: Stack) -> str:
        """The norm after the last block."""
        return f"{stack}.final_layer_norm"

    def bias_table(self, stack: Stack) -> str | None:
        """The table in the first block."""
        return self._table(stack, 0)

    def _table(self, stack: Stack, layer: int) -> str:
        return f"{self.layers(stack)}.{layer}.layer.0.SelfAttention.relative_attention_bias"

    def stack_shapes(self) -> Shapes:
        """The embedding, the tables of relative positions and the final norms."""
        yield "shared.weight", (self.spec.vocab_size, self.spec.width)
        for stack in STACKS:
            table = self.bias_table(stack)
            if table is not None:
                yield f"{table}.weight", (self.spec.relative_buckets, self.spec.num_heads)
            yield from self.norm_shapes(self.final_norm(stack))

    def optional_shapes(self) -> Shapes:
        """An untied output matrix, copies of the embedding, and a table that T5 never used."""
        for name in (self.output, "encoder.embed_tokens", "decoder.embed_tokens"):
            yield f"{name}.weight", (self.spec.vocab_size, self.spec.width)
        unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        yield unused, (self.spec.relative_buckets, self.spec.num_heads)
