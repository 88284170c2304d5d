"""The arithmetic of speed, on costs that are known."""

import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nash.costs.cost_model import MODERATE_SPARSITY, CostModel, Cut, ShapeChoice, Timing, choose, fastest, fit

COSTS = CostModel(
    new_tokens=10,
    encoder_fixed_ms=1.0,
    encoder_heads_ms=2.0,
    encoder_units_ms=3.0,
    cross_ms=0.5,
    layer_ms=0.25,
    head_ms=0.75,
)
CUTS = [
    Cut(decoder_layers=6, heads=1.0, units=1.0),
    Cut(decoder_layers=1, heads=1.0, units=1.0),
    Cut(decoder_layers=3, heads=0.5, units=1.0),
    Cut(decoder_layers=3, heads=1.0, units=0.5),
    Cut(decoder_layers=1, heads=0.5, units=0.5),
]
DENSE_MS = COSTS.predict(CUTS[0]).total_ms

milliseconds = st.floats(min_value=0.01, max_value=100.0)


def test_the_prediction_is_the_sum_of_its_parts() -> None:
    timing = COSTS.predict(Cut(decoder_layers=3, heads=0.5, units=0.25))
    assert timing.encode_ms == pytest.approx(1.0 + 0.5 * 2.0 + 0.25 * 3.0 + 3 * 0.5)
    assert timing.decode_ms == pytest.approx(10 * (0.75 + 3 * 0.25))
    assert timing.total_ms == timing.encode_ms + timing.decode_ms


@given(
    st.builds(
        CostModel,
        new_tokens=st.integers(1, 500),
        encoder_fixed_ms=milliseconds,
        encoder_heads_ms=milliseconds,
        encoder_units_ms=milliseconds,
        cross_ms=milliseconds,
        layer_ms=milliseconds,
        head_ms=milliseconds,
    )
)
def test_costs_are_found_again_from_exact_times(costs: CostModel) -> None:
    found = fit([(cut, costs.predict(cut)) for cut in CUTS], costs.new_tokens)
    assert asdict(found) == pytest.approx(asdict(costs), rel=1e-6)


def test_noise_is_averaged_and_no_cost_is_negative() -> None:
    noise = [1.02, 0.98, 1.01, 0.99, 1.0]
    timings = [COSTS.predict(cut) for cut in CUTS]
    noisy = [
        Timing(encode_ms=factor * t.encode_ms, decode_ms=factor * t.decode_ms)
        for factor, t in zip(noise, timings, strict=True)
    ]
    found = fit(list(zip(CUTS, noisy, strict=True)), COSTS.new_tokens)
    for cut, timing in zip(CUTS, timings, strict=True):
        assert found.predict(cut).total_ms == pytest.approx(timing.total_ms, rel=0.03)
    # Where sparser encoders were slower, by chance, sparsity costs nothing rather than less.
    upside_down = [Timing(encode_ms=5.0 - cut.heads - cut.units, decode_ms=1.0) for cut in CUTS]
    flat = fit(list(zip(CUTS, upside_down, strict=True)), 1)
    assert (flat.encoder_heads_ms, flat.encoder_units_ms) == (0.0, 0.0)
    assert min(asdict(flat).values()) >= 0


def test_a_model_with_one_decoder_layer_can_be_fitted() -> None:
    cuts = [Cut(decoder_layers=1, heads=cut.heads, units=cut.units) for cut in CUTS]
    found = fit([(cut, COSTS.predict(cut)) for cut in cuts], COSTS.new_tokens)
    for cut in cuts:
        assert found.predict(cut).total_ms == pytest.approx(COSTS.predict(cut).total_ms)


def test_the_required_sparsity() -> None:
    dense_encoder_ms = COSTS.predict(Cut.uniform(2, 0.0)).total_ms
    assert COSTS.required_sparsity(2, dense_encoder_ms) == 0.0
    assert COSTS.required_sparsity(2, 2 * dense_encoder_ms) == 0.0
    assert COSTS.required_sparsity(2, dense_encoder_ms - 1.0) == pytest.approx(0.2)  # 5 ms can be cut
    assert COSTS.required_sparsity(2, dense_encoder_ms - 5.0) == pytest.approx(1.0)
    assert math.isinf(COSTS.required_sparsity(2, dense_encoder_ms - 5.1))


def chosen(speedup: float, most_sparsity: float = 0.9) -> ShapeChoice | None:
    return choose(COSTS, DENSE_MS / speedup, decoder_layers=6, most_sparsity=most_sparsity)


def test_as_many_decoder_layers_as_a_moderate_sparsity_allows() -> None:
    # Dense: 1 + 5 + 6 * 0.5 + 10 * (0.75 + 6 * 0.25) = 31.5 ms; a decoder layer is 3 ms, a tenth of the encoder 0.5.
    assert DENSE_MS == 31.5
    assert chosen(31.5 / 30.5) == ShapeChoice(decoder_layers=6, encoder_sparsity=0.2)
    assert chosen(31.5 / 29.0) == ShapeChoice(decoder_layers=6, encoder_sparsity=MODERATE_SPARSITY)
    assert chosen(31.5 / 28.9) == ShapeChoice(decoder_layers=5, encoder_sparsity=0.0)
    assert chosen(31.5 / 19.0) == ShapeChoice(decoder_layers=2, encoder_sparsity=0.1)


def test_beyond_that_one_layer_and_what_it_takes() -> None:
    assert chosen(31.5 / 13.5) == ShapeChoice(decoder_layers=1, encoder_sparsity=0.6)
    assert chosen(31.5 / 12.0) == ShapeChoice(decoder_layers=1, encoder_sparsity=0.9)
    assert chosen(31.5 / 11.9) is None
    assert chosen(31.5 / 13.5, most_sparsity=0.55) is None
    assert chosen(31.5 / 30.5, most_sparsity=0.1) == ShapeChoice(decoder_layers=5, encoder_sparsity=0.0)


def test_what_is_chosen_meets_the_budget() -> None:
    largest = DENSE_MS / fastest(COSTS, most_sparsity=0.9).total_ms
    for i in range(100):
        speedup = 1.001 + (largest - 1.002) * i / 99
        choice = chosen(speedup)
        assert choice is not None
        assert DENSE_MS / COSTS.predict(choice.cut).total_ms >= speedup * (1 - 1e-9)
    assert chosen(largest + 0.01) is None


def test_costs_are_corrected_at_a_measured_cut() -> None:
    cut = Cut.uniform(2, 0.3)
    predicted = COSTS.predict(cut)
    measured = Timing(encode_ms=1.5 * predicted.encode_ms, decode_ms=0.8 * predicted.decode_ms)
    corrected = COSTS.corrected(cut, measured)
    assert corrected.predict(cut).encode_ms == pytest.approx(measured.encode_ms)
    assert corrected.predict(cut).decode_ms == pytest.approx(measured.decode_ms)
    assert corrected.layer_ms == pytest.approx(0.8 * COSTS.layer_ms)
    assert corrected.encoder_units_ms == pytest.approx(1.5 * COSTS.encoder_units_ms)
