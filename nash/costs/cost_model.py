"""The engine's cost of a model of a given shape, and the shape for a requested speed: arithmetic only.

A batch of sources with answers of N tokens each takes

    T = t_encoder + N * t_step
    t_encoder = fixed + heads * h + units * u + n * c      (h, u: kept shares of the encoder's heads and units)
    t_step = head + n * layer                              (n: decoder layers)

where `c` is the cost of a decoder layer's keys and values of the source, computed once per source, and `head` is the
part of a step that does not depend on the decoder's depth: embedding, logits, the choice of a token. All costs hold for
one workload (batch, lengths, dtype, threads) on one machine, and are fitted to measured times by least squares.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

# NASH found, first, that the time is spent in the decoder's depth and, second, that low encoder sparsity keeps quality.
# So the encoder is cut up to this sparsity before another decoder layer is dropped.
MODERATE_SPARSITY = 0.5
# Beyond this an encoder has almost nothing left, and the gates' expected sparsity cannot exceed 0.95 anyway.
MOST_SPARSITY = 0.9


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A shape as the cost model sees it: decoder layers, and the kept shares of the encoder's heads and units."""

    decoder_layers: int
    heads: float
    units: float

    @classmethod
    def uniform(cls, decoder_layers: int, encoder_sparsity: float) -> "Cut":
        """Cut the same share of heads and units."""
        return cls(decoder_layers=decoder_layers, heads=1 - encoder_sparsity, units=1 - encoder_sparsity)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of one cut: encoding the batch, and all decode steps together."""

    encode_ms: float
    decode_ms: float

    @property
    def total_ms(self) -> float:
        """Both together."""
        return self.encode_ms + self.decode_ms


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The costs of one workload, in milliseconds; none is negative."""

    new_tokens: int  # of every answer
    encoder_fixed_ms: float
    encoder_heads_ms: float  # of all heads of all layers
    encoder_units_ms: float
    cross_ms: float  # of one decoder layer, once per source
    layer_ms: float  # of one decoder layer, each step
    head_ms: float  # the rest of a step

    def predict(self, cut: Cut) -> Timing:
        """The predicted times of a cut."""
        return Timing(
            encode_ms=self.encoder_fixed_ms
            + cut.heads * self.encoder_heads_ms
            + cut.units * self.encoder_units_ms
            + cut.decoder_layers * self.cross_ms,
            decode_ms=self.new_tokens * (self.head_ms + cut.decoder_layers * self.layer_ms),
        )

    def required_sparsity(self, decoder_layers: int, budget_ms: float) -> float:
        """The least uniform encoder sparsity at which this many decoder layers stay within the budget.

        At most 1 if the budget can be met; infinite if even an encoder without heads and units is too slow.
        """
        over_ms = self.predict(Cut.uniform(decoder_layers, 0.0)).total_ms - budget_ms
        if over_ms <= 0:
            return 0.0
        prunable_ms = self.encoder_heads_ms + self.encoder_units_ms
        return over_ms / prunable_ms if over_ms <= prunable_ms else math.inf

    def corrected(self, cut: Cut, measured: Timing) -> "CostModel":
        """The model with each stack's costs scaled to match the measured times of `cut`."""
        predicted = self.predict(cut)
        encoder, decoder = measured.encode_ms / predicted.encode_ms, measured.decode_ms / predicted.decode_ms
        return replace(
            self,
            encoder_fixed_ms=encoder * self.encoder_fixed_ms,
            encoder_heads_ms=encoder * self.encoder_heads_ms,
            encoder_units_ms=encoder * self.encoder_units_ms,
            cross_ms=encoder * self.cross_ms,
            layer_ms=decoder * self.layer_ms,
            head_ms=decoder * self.head_ms,
        )


@dataclass(frozen=True, kw_only=True)
class ShapeChoice:
    """A shape to prune to."""

    decoder_layers: int
    encoder_sparsity: float

    @property
    def cut(self) -> Cut:
        """The shape as the cost model sees it."""
        return Cut.uniform(self.decoder_layers, self.encoder_sparsity)


def fit(measured: Sequence[tuple[Cut, Timing]], new_tokens: int) -> CostModel:
    """The non-negative costs that best explain the measured times: least squares of the relative errors.

    The errors are relative because a speed-up is a ratio: a tenth of a millisecond matters more in a fast model than in
    a slow one. `measured` needs at least two numbers of decoder layers, of heads and of units, varied independently.
    """
    encoder = _least_squares(
        [[1.0, cut.heads, cut.units, float(cut.decoder_layers)] for cut, _ in measured],
        [timing.encode_ms for _, timing in measured],
    )
    decoder = _least_squares(
        [[1.0, float(cut.decoder_layers)] for cut, _ in measured],
        [timing.decode_ms / new_tokens for _, timing in measured],
    )
    return CostModel(
        new_tokens=new_tokens,
        encoder_fixed_ms=encoder[0],
        encoder_heads_ms=encoder[1],
        encoder_units_ms=encoder[2],
        cross_ms=encoder[3],
        head_ms=decoder[0],
        layer_ms=decoder[1],
    )


def choose(model: CostModel, budget_ms: float, *, decoder_layers: int, most_sparsity: float) -> ShapeChoice | None:
    """The shape within the budget that is expected to keep the most quality; None if no shape is within it.

    It keeps the most of `decoder_layers` for which an encoder sparsity of at most `MODERATE_SPARSITY` is enough, with
    the least such sparsity. If that is not enough even for one layer, it has one layer and as much sparsity as needed,
    up to `most_sparsity`.
    """
    moderate = min(MODERATE_SPARSITY, most_sparsity)
    for layers in range(decoder_layers, 0, -1):
        sparsity = _rounded_up(model.required_sparsity(layers, budget_ms))
        if sparsity <= (moderate if layers > 1 else most_sparsity):
            return ShapeChoice(decoder_layers=layers, encoder_sparsity=sparsity)
    return None


def fastest(model: CostModel, *, most_sparsity: float) -> Timing:
    """The times of the fastest shape that can be requested: one decoder layer and the sparsest encoder."""
    return model.predict(Cut.uniform(1, most_sparsity))


def _rounded_up(sparsity: float) -> float:
    """Round up to a whole number of thousandths, which is finer than the gates of most models."""
    return sparsity if math.isinf(sparsity) else math.ceil(round(1000 * sparsity, 6)) / 1000


def _least_squares(rows: list[list[float]], values: list[float]) -> list[float]:
    """The non-negative solution with the least squared relative error.

    It equals the plain solution over its non-zero columns. So try every choice of columns, as they are few, and take
    the best one whose plain solution is not negative.
    """
    times = torch.tensor(values, dtype=torch.float64)
    x, y = torch.tensor(rows, dtype=torch.float64) / times.unsqueeze(1), torch.ones_like(times)
    best, best_error = [0.0] * x.shape[1], float(y.square().sum())
    for count in range(1, x.shape[1] + 1):
        for columns in itertools.combinations(range(x.shape[1]), count):
            chosen = x[:, list(columns)]
            solution = torch.linalg.lstsq(chosen, y, driver="gelsd").solution
            error = float((chosen @ solution - y).square().sum())
            if bool((solution >= 0).all()) and error < best_error:
                found = dict(zip(columns, solution.tolist(), strict=True))
                best, best_error = [found.get(column, 0.0) for column in range(x.shape[1])], error
    return best
