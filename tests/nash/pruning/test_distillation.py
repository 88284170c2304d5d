"""Layer matching against brute force; hidden losses against their definition; recording against transformers."""

from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from model_store.model.model import Model
from nash.modeling.folders import load_dense
from nash.pruning.distillation import (
    DistillationMaps,
    compared_layers,
    decoder_loss,
    encoder_loss,
    match_layers,
    recorded,
)


@pytest.mark.parametrize(
    ("total", "layers"),
    [(12, (2, 5, 8, 11)), (6, (0, 2, 3, 5)), (24, (5, 11, 17, 23)), (4, (0, 1, 2, 3)), (3, (0, 1, 2)), (1, (0,))],
)
def test_compared_layers(total: int, layers: tuple[int, ...]) -> None:
    assert compared_layers(total) == layers


@st.composite
def costs(draw: st.DrawFn) -> list[list[float]]:
    """Small whole numbers, so that there are ties."""
    teacher, student = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    return [[float(draw(st.integers(0, 9))) for _ in range(student)] for _ in range(teacher)]


@settings(max_examples=300, deadline=None)
@given(cost_TS=costs())
def test_matching_is_the_cheapest_that_keeps_the_order(cost_TS: list[list[float]]) -> None:
    def total(choice: tuple[int, ...]) -> float:
        return sum(row[s] for row, s in zip(cost_TS, choice, strict=True))

    choice = tuple(match_layers(torch.tensor(cost_TS)).tolist())
    assert list(choice) == sorted(choice)
    ordered = combinations_with_replacement(range(len(cost_TS[0])), len(cost_TS))
    assert total(choice) == min(total(c) for c in ordered)


def states(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 4, generator=generator) for _ in range(count)]


def test_encoder_loss() -> None:
    """Layers of the teacher that repeat layers 0 and 2 of the student, each larger by a known share."""
    student = states(3, seed=0)
    teacher = [student[0] / 0.9, student[2] / 0.8]
    mask = torch.tensor([[True, True, False], [True, False, False]])
    identity = DistillationMaps(4, 1).encoder
    assert encoder_loss(student, teacher, identity, mask, None).item() == pytest.approx((0.01 + 0.04) / 2, rel=1e-4)
    assert encoder_loss(student, teacher, identity, mask, 30).item() == pytest.approx(0.025 * 3 / 30, rel=1e-4)
    teacher[1][~mask] += 100
    assert encoder_loss(student, teacher, identity, mask, None).item() == pytest.approx(0.025, rel=1e-4)


def test_encoder_loss_of_layers_by_their_numbers() -> None:
    """Nearest would be layers 0 and 2; asked for are 0 and 1."""
    student = [torch.full((1, 2, 4), float(value)) for value in (1, 5, 2)]
    teacher = [student[0] + 0.5, student[2] + 0.5]
    mask, identity = torch.ones(1, 2, dtype=torch.bool), DistillationMaps(4, 1).encoder
    nearest = encoder_loss(student, teacher, identity, mask, None).item()
    assert nearest == pytest.approx(((0.5 / 1.5) ** 2 + (0.5 / 2.5) ** 2) / 2)
    by_number = encoder_loss(student, teacher, identity, mask, None, same=(0, 1)).item()
    assert by_number == pytest.approx(((0.5 / 1.5) ** 2 + (2.5 / 2.5) ** 2) / 2)


def test_decoder_loss_has_a_map_for_each_layer() -> None:
    student, mask = states(2, seed=1), torch.ones(2, 3, dtype=torch.bool)
    maps = DistillationMaps(4, 2).decoder
    with torch.no_grad():
        maps[1].weight.mul_(2)  # type: ignore[operator]
    teacher = [2 * student[0], 2 * student[1]]
    assert decoder_loss(student, teacher, maps, mask, None).item() == pytest.approx(0.25 / 2, rel=1e-4)
    assert isinstance(maps[0], nn.Linear)
    torch.testing.assert_close(maps[0].weight, torch.eye(4))


def test_recorded_states_are_transformers_hidden_states(dense_dir: Path) -> None:
    model = load_dense(Model.open(dense_dir)).eval()
    ids = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), recorded(model.encoder.block) as encoder, recorded(model.decoder.block) as decoder:
        outputs = model(input_ids=ids, decoder_input_ids=ids, output_hidden_states=True)
    assert (len(encoder), len(decoder)) == (3, 3)
    # transformers gives the embeddings first, and the last state after the final norm.
    for ours, theirs in ((encoder, outputs.encoder_hidden_states), (decoder, outputs.decoder_hidden_states)):
        for state, expected in zip(ours[:-1], theirs[1:-1], strict=True):
            torch.testing.assert_close(state, expected, rtol=0, atol=0)
    torch.testing.assert_close(model.encoder.final_layer_norm(encoder[-1]), outputs.encoder_last_hidden_state)
    with torch.no_grad():
        model(input_ids=ids, decoder_input_ids=ids)
    assert len(encoder) == 3, "recording went on after its block"
