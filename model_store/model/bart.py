"""BART's layout: BART, mBART, Marian, Pegasus, M2M100 and NLLB."""

from collections.abc import Mapping
from typing import Any, ClassVar

from model_store.model import config_fields as fields
from model_store.model.config_fields import bad
from model_store.model.families import ACTIVATIONS, Family
from model_store.model.layout import STACKS, Kind, Layout, Shapes, Stack, SublayerNames

_ATTENTION = {"self_attention": "self_attn", "cross_attention": "encoder_attn"}


class BartLayout(Layout):
    """Biases everywhere, norms first or last, positions added to the embedding, scaled attention scores."""

    layers_keys: ClassVar[Mapping[Stack, str]] = {"encoder": "encoder_layers", "decoder": "decoder_layers"}
    biases = True
    scaled_scores = True
    norm_eps_key = None
    output = "lm_head"
    logits_bias = "final_logits_bias"
    first_position = 2  # fairseq reserved the rows before it for padding

    @classmethod
    def widths(cls, config: Mapping[str, Any], family: Family) -> dict[str, Any]:
        """Read BART's keys."""
        activation = fields.text(config, "activation_function", family.feed_forward)
        if activation not in ACTIVATIONS:
            raise bad("activation_function", activation, " or ".join(ACTIVATIONS))
        most, d_model = fields.MOST_LAYERS_OR_HEADS, fields.count(config, "d_model", most=fields.MOST_WIDTH)
        num_heads = fields.count(config, "encoder_attention_heads", most=most)
        decoder_heads = fields.count(config, "decoder_attention_heads", most=most)
        if decoder_heads != num_heads:
            raise bad("decoder_attention_heads", decoder_heads, f"encoder_attention_heads, {num_heads}")
        if d_model % num_heads:
            raise bad("d_model", d_model, f"a multiple of encoder_attention_heads, {num_heads}")
        max_positions = fields.count(config, "max_position_embeddings", 1024, most=fields.MOST_POSITIONS)
        if family.positions == "endless" and d_model < 4:
            raise bad("d_model", d_model, "at least 4, for the wavelengths of its positions")
        vocab_size = target_vocab_size = fields.count(config, "vocab_size", most=fields.MOST_TOKENS)
        shared = not family.may_have_two_vocabularies or fields.flag(
            config, "share_encoder_decoder_embeddings", default=True
        )
        if not shared:
            target_vocab_size = fields.count(config, "decoder_vocab_size", vocab_size, most=fields.MOST_TOKENS)
        return {
            "vocab_size": vocab_size,
            "target_vocab_size": target_vocab_size,
            "d_model": d_model,
            "head_dim": d_model // num_heads,
            "num_heads": num_heads,
            "d_ff": fields.count(config, "encoder_ffn_dim", most=fields.MOST_UNITS),
            "decoder_d_ff": fields.count(config, "decoder_ffn_dim", most=fields.MOST_UNITS),
            "activation": ACTIVATIONS[activation],
            "gated_ffn": False,
            "relative_buckets": 0,
            "relative_max_distance": 0,
            "max_positions": None if family.positions == "endless" else max_positions,
            "layer_norm_eps": 1e-5,  # torch's default: no config of these families sets one
            "scale_embedding": fields.flag(config, "scale_embedding", default=family.scales_embedding),
            "scale_logits": False,
            "shared_embedding": shared,
            "tied_output": fields.flag(config, "tie_word_embeddings", default=True),
        }

    def layers(self, stack: Stack) -> str:
        """The module list of a stack's layers."""
        return f"model.{stack}.layers"

    def sublayer(self, stack: Stack, layer: int, kind: Kind) -> SublayerNames:
        """A layer's matrices and norms are direct children of its module."""
        place = f"{self.layers(stack)}.{layer}"
        if kind == "feed_forward":
            return SublayerNames(inputs=(f"{place}.fc1",), out=f"{place}.fc2", norm=f"{place}.final_layer_norm")
        module = f"{place}.{_ATTENTION[kind]}"
        inputs = tuple(f"{module}.{name}_proj" for name in "qkv")
        return SublayerNames(inputs=inputs, out=f"{module}.out_proj", norm=f"{module}_layer_norm")

    def embeddings(self, stack: Stack) -> tuple[str, ...]:
        """A stack's own embedding, otherwise the shared one."""
        return f"model.{stack}.embed_tokens", "model.shared"

    def final_norm(self, stack: Stack) -> str:
        """The norm after the last layer."""
        return f"model.{stack}.layer_norm"

    def embedding_norm(self, stack: Stack) -> str:
        """The norm after the sum of token and position embeddings."""
        return f"model.{stack}.layernorm_embedding"

    def positions(self, stack: Stack) -> str:
        """The table of learned positions, or of sinusoids, which some checkpoints contain."""
        return f"model.{stack}.embed_positions"

    def stack_shapes(self) -> Shapes:
        """Embeddings, an untied output matrix, learned positions and norms."""
        d, facts = self.spec.width, self.spec.facts
        if self.spec.shared_embedding:
            yield "model.shared.weight", (self.spec.vocab_size, d)
        else:
            yield "model.encoder.embed_tokens.weight", (self.spec.vocab_size, d)
            yield "model.decoder.embed_tokens.weight", (self.spec.target_vocab_size, d)
        if not self.spec.tied_output:
            yield f"{self.output}.weight", (self.spec.target_vocab_size, d)
        for stack in STACKS:
            if facts.positions == "learned":
                assert self.spec.max_positions is not None, "learned positions come in a number"
                yield f"{self.positions(stack)}.weight", (self.spec.max_positions + self.first_position, d)
            if facts.embeds_norm:
                yield from self.norm_shapes(self.embedding_norm(stack))
            if facts.norm_first:
                yield from self.norm_shapes(self.final_norm(stack))

    def optional_shapes(self) -> Shapes:
        """The logits' bias, computable position tables, tied matrices."""
        embedding = (self.spec.target_vocab_size, self.spec.width)
        if self.spec.facts.logits_bias:
            yield self.logits_bias, (1, self.spec.target_vocab_size)
        if self.spec.facts.positions == "sinusoidal":
            assert self.spec.max_positions is not None, "a table of positions has a length"
            for stack in STACKS:
                # Sinusoids are whole even where hidden states are not: their wavelengths are the dense model's.
                yield f"{self.positions(stack)}.weight", (self.spec.max_positions, self.spec.d_model)
        if self.spec.tied_output:
            yield f"{self.output}.weight", embedding
        if self.spec.shared_embedding:
            yield "model.encoder.embed_tokens.weight", embedding
            yield "model.decoder.embed_tokens.weight", embedding
