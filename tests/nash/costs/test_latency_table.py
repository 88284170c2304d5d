"""The latency table: fitted to a machine whose costs are known, it gives these costs back."""

import pytest

from model_store.model.config import spec_of
from model_store.model.layout import Kind
from model_store.model.spec import DecoderLayerSpec, EncoderLayerSpec, ModelSpec
from nash.costs.cost_model import Timing
from nash.costs.latency_table import LatencyTable, SublayerCost, fit, probes

NEW_TOKENS = 10
COSTS: dict[str, dict[Kind, SublayerCost]] = {
    "encoder": {
        "self_attention": SublayerCost(present=0.3, whole=2.0),
        "feed_forward": SublayerCost(present=0.1, whole=5.0),
        "cross_attention": SublayerCost(present=0.05, whole=0.4),
    },
    "decoder": {
        "self_attention": SublayerCost(present=0.02, whole=0.1),
        "cross_attention": SublayerCost(present=0.03, whole=0.2),
        "feed_forward": SublayerCost(present=0.01, whole=0.3),
    },
}
TRUE = LatencyTable(
    new_tokens=NEW_TOKENS, encoder_ms=0.7, step_ms=0.15, encoder=COSTS["encoder"], decoder=COSTS["decoder"]
)


@pytest.fixture
def dense() -> ModelSpec:
    return spec_of(
        {
            "model_type": "t5",
            "vocab_size": 20,
            "d_model": 8,
            "num_heads": 4,
            "d_kv": 2,
            "d_ff": 16,
            "num_layers": 3,
            "num_decoder_layers": 4,
        }
    )


def narrowed(dense: ModelSpec) -> ModelSpec:
    heads = dense.encoder[0].heads
    return ModelSpec(
        **(
            vars(dense)
            | {
                "encoder": (
                    EncoderLayerSpec(heads=heads[:1], ffn=0),
                    EncoderLayerSpec(heads=(), ffn=12),
                    EncoderLayerSpec(heads=heads, ffn=16),
                ),
                "decoder": (
                    DecoderLayerSpec(self_heads=(), cross_heads=heads[:3], ffn=4, origin=0),
                    DecoderLayerSpec(self_heads=heads[:2], cross_heads=(), ffn=0, origin=3),
                ),
            }
        )
    )


def test_a_prediction_adds_up_the_sublayers(dense: ModelSpec) -> None:
    found = TRUE.predict(narrowed(dense))
    encode = 0.7 + (0.3 + 0.5) + (0.1 + 0.75 * 5) + (0.3 + 2.0) + (0.1 + 5.0) + (0.05 + 0.75 * 0.4)
    step = 0.15 + (0.03 + 0.75 * 0.2) + (0.01 + 0.25 * 0.3) + (0.02 + 0.05)
    assert (found.encode_ms, found.decode_ms) == pytest.approx((encode, NEW_TOKENS * step))


def test_the_prices_of_sublayers_add_up_to_the_prediction(dense: ModelSpec) -> None:
    spec = narrowed(dense)
    total = TRUE.fixed_ms
    for layer in spec.encoder:
        total += TRUE.sublayer_ms("encoder", "self_attention", len(layer.heads) / 4)
        total += TRUE.sublayer_ms("encoder", "feed_forward", layer.ffn / 16)
    for each in spec.decoder:
        total += TRUE.sublayer_ms("decoder", "self_attention", len(each.self_heads) / 4)
        total += TRUE.sublayer_ms("decoder", "cross_attention", len(each.cross_heads) / 4)
        total += TRUE.sublayer_ms("decoder", "feed_forward", each.ffn / 16)
    assert total == pytest.approx(TRUE.predict(spec).total_ms)


def test_the_probes_tell_every_cost(dense: ModelSpec) -> None:
    table = fit([(spec, TRUE.predict(spec)) for spec in probes(dense)], NEW_TOKENS)
    for stack in ("encoder", "decoder"):
        for kind, cost in COSTS[stack].items():
            found = getattr(table, stack)[kind]
            assert (found.present, found.whole) == (pytest.approx(cost.present), pytest.approx(cost.whole)), kind
    assert (table.encoder_ms, table.step_ms) == pytest.approx((0.7, 0.15))
    assert LatencyTable.of(table.document()) == table


def test_noise_makes_no_cost_negative(dense: ModelSpec) -> None:
    noisy = [
        (spec, Timing(encode_ms=t.encode_ms * (1 + 0.1 * (-1) ** i), decode_ms=t.decode_ms * (1 - 0.1 * (-1) ** i)))
        for i, (spec, t) in enumerate((spec, TRUE.predict(spec)) for spec in probes(dense))
    ]
    table = fit(noisy, NEW_TOKENS)
    costs = [*table.encoder.values(), *table.decoder.values()]
    assert min(min(cost.present, cost.whole) for cost in costs) >= 0
    assert min(table.encoder_ms, table.step_ms) >= 0


def test_a_correction_meets_the_measured_times(dense: ModelSpec) -> None:
    spec, measured = narrowed(dense), Timing(encode_ms=20.0, decode_ms=7.0)
    corrected = TRUE.corrected(spec, measured).predict(spec)
    assert (corrected.encode_ms, corrected.decode_ms) == pytest.approx((20.0, 7.0))
