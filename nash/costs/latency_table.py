"""The engine's time of every part of a model, for one workload on one machine: a table fitted to measured models.

A batch of sources with answers of N tokens takes

    T = e + sum over the encoder's sublayers + sum over the decoder's cross-attentions (their keys and values, once)
        + N * (h + sum over the decoder's sublayers)

where a sublayer of a kind takes `present + width * whole`, if it has any part, and nothing otherwise; `width` is the
share of its heads or units that is left. The costs of each kind are fitted by least squares, none negative, to the
times of models with random weights that lack each part in turn.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from scipy.optimize import nnls

from model_store.model.layout import Kind, Stack
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec
from nash.costs.cost_model import Timing

# The kinds of sublayers in each stack, in the order in which a layer runs them.
KINDS: dict[Stack, tuple[Kind, ...]] = {
    "encoder": ("self_attention", "feed_forward"),
    "decoder": ("self_attention", "cross_attention", "feed_forward"),
}


@dataclass(frozen=True, kw_only=True)
class SublayerCost:
    """What a sublayer of one kind takes, in milliseconds."""

    present: float  # if anything of it is left
    whole: float  # more, if all of it is

    def at(self, width: float) -> float:
        """The time of a sublayer of which the share `width`, from 0 to 1, is left."""
        return self.present + width * self.whole if width else 0.0


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """The costs of one workload, in milliseconds; none is negative."""

    new_tokens: int  # of every answer
    encoder_ms: float  # the rest of encoding a batch
    step_ms: float  # the rest of a decode step
    encoder: dict[Kind, SublayerCost]  # of encoding a batch; "cross_attention": a decoder layer's keys and values
    decoder: dict[Kind, SublayerCost]  # of a decode step

    def sublayer_ms(self, stack: Stack, kind: Kind, width: float) -> float:
        """What a sublayer of this width takes of a whole answer."""
        if stack == "encoder":
            return self.encoder[kind].at(width)
        once = self.encoder[kind].at(width) if kind == "cross_attention" else 0.0
        return once + self.new_tokens * self.decoder[kind].at(width)

    @property
    def fixed_ms(self) -> float:
        """What a whole answer takes without any sublayer."""
        return self.encoder_ms + self.new_tokens * self.step_ms

    def predict(self, spec: ModelSpec) -> Timing:
        """The predicted times of a shape."""
        encode = self.encoder_ms + sum(
            count * self.encoder[kind].present + width * self.encoder[kind].whole
            for kind, (count, width) in _encoding(spec).items()
        )
        step = self.step_ms + sum(
            count * self.decoder[kind].present + width * self.decoder[kind].whole
            for kind, (count, width) in _stepping(spec).items()
        )
        return Timing(encode_ms=encode, decode_ms=self.new_tokens * step)

    def corrected(self, spec: ModelSpec, measured: Timing) -> "LatencyTable":
        """The table with each stack's costs scaled to match the measured times of a shape."""
        predicted = self.predict(spec)
        encoder, decoder = measured.encode_ms / predicted.encode_ms, measured.decode_ms / predicted.decode_ms

        def scaled(costs: dict[Kind, SublayerCost], by: float) -> dict[Kind, SublayerCost]:
            return {k: SublayerCost(present=by * c.present, whole=by * c.whole) for k, c in costs.items()}

        return LatencyTable(
            new_tokens=self.new_tokens,
            encoder_ms=encoder * self.encoder_ms,
            step_ms=decoder * self.step_ms,
            encoder=scaled(self.encoder, encoder),
            decoder=scaled(self.decoder, decoder),
        )

    def document(self) -> dict[str, Any]:
        """The table as one JSON object."""
        return asdict(self)

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        """The table that `document` was made from."""
        costs = {
            stack: {kind: SublayerCost(**cost) for kind, cost in document[stack].items()}
            for stack in ("encoder", "decoder")
        }
        return cls(**(document | costs))


def probes(dense: ModelSpec) -> list[ModelSpec]:
    """The shapes whose times determine all costs: the whole model, and each kind of sublayer halved and left out."""
    whole_encoder = EncoderLayerSpec(heads=dense.encoder[0].heads, ffn=dense.d_ff)
    first = dense.decoder[0]
    half, none = first.self_heads[: max(1, dense.num_heads // 2)], ()

    def encoder(**changed: Any) -> ModelSpec:
        layer = EncoderLayerSpec(**(vars(whole_encoder) | changed))
        return _with(dense, encoder=(layer,) * len(dense.encoder))

    def decoder(**changed: Any) -> ModelSpec:
        layers = tuple(DecoderLayerSpec(**(vars(layer) | changed)) for layer in dense.decoder)
        return _with(dense, decoder=layers)

    return [
        dense,
        encoder(heads=half),
        encoder(heads=none),
        encoder(ffn=dense.d_ff // 2),
        encoder(ffn=0),
        decoder(self_heads=half),
        decoder(self_heads=none),
        decoder(cross_heads=half),
        decoder(cross_heads=none),
        decoder(ffn=dense.decoder_d_ff // 2),
        decoder(ffn=0),
        _with(dense, decoder=dense.decoder[:1]),
    ]


def fit(measured: Sequence[tuple[ModelSpec, Timing]], new_tokens: int) -> LatencyTable:
    """The table that best explains the measured times; the least squares are of the relative errors."""
    encoder_kinds: tuple[Kind, ...] = (*KINDS["encoder"], "cross_attention")
    encoder_rest, encoder = _solve(
        [_encoding(spec) for spec, _ in measured], [timing.encode_ms for _, timing in measured], encoder_kinds
    )
    step_rest, decoder = _solve(
        [_stepping(spec) for spec, _ in measured],
        [timing.decode_ms / new_tokens for _, timing in measured],
        KINDS["decoder"],
    )
    return LatencyTable(
        new_tokens=new_tokens, encoder_ms=encoder_rest, step_ms=step_rest, encoder=encoder, decoder=decoder
    )


# Of each kind of sublayer: how many are there, and the sum of their widths.
_Amounts = dict[Kind, tuple[int, float]]


def _encoding(spec: ModelSpec) -> _Amounts:
    heads = [len(layer.heads) / spec.num_heads for layer in spec.encoder]
    units = [layer.ffn / spec.d_ff for layer in spec.encoder]
    cross = [len(layer.cross_heads) / spec.num_heads for layer in spec.decoder]
    return {"self_attention": _amount(heads), "feed_forward": _amount(units), "cross_attention": _amount(cross)}


def _stepping(spec: ModelSpec) -> _Amounts:
    return {
        "self_attention": _amount([len(layer.self_heads) / spec.num_heads for layer in spec.decoder]),
        "cross_attention": _amount([len(layer.cross_heads) / spec.num_heads for layer in spec.decoder]),
        "feed_forward": _amount([layer.ffn / spec.decoder_d_ff for layer in spec.decoder]),
    }


def _amount(widths: list[float]) -> tuple[int, float]:
    return sum(width > 0 for width in widths), sum(widths)


def _solve(
    amounts: Sequence[_Amounts], times: Sequence[float], kinds: Sequence[Kind]
) -> tuple[float, dict[Kind, SublayerCost]]:
    rows = np.array([[1.0, *(value for kind in kinds for value in each[kind])] for each in amounts])
    by_time = np.array(times)
    solution, _ = nnls(rows / by_time[:, None], np.ones(len(times)))
    costs = solution[1:].reshape(-1, 2).tolist()
    return float(solution[0]), {
        kind: SublayerCost(present=present, whole=whole) for kind, (present, whole) in zip(kinds, costs, strict=True)
    }


def _with(spec: ModelSpec, **changed: Any) -> ModelSpec:
    return ModelSpec(**(vars(spec) | changed))
