"""Structured dropout of decoder layers while a dense model is trained."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, set_seed

from model_store.model.model import Model
from nash.finetuning.layer_dropout import LayerDropoutObjective, draw, only_layers
from nash.modeling.folders import load_dense
from nash.modeling.layers import layers_of
from nash.recipes.recipe import OptimizationRecipe
from nash.structure.compaction import shorten_decoder
from nash.training.phase import Phase
from tests.nash.tiny_training import build_task_model, task_pairs
from tests.nash.training.test_training import Interrupt
from tests.tiny_families import CASES, FIRST_TOKEN, build_tiny

LAYERS = 3


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_task_model(tmp_path_factory.mktemp("task") / "model", dropout=0.0)


def phase_of(model_dir: Path, out: Path, rate: float, watcher: Interrupt | None = None) -> Phase:
    set_seed(0)
    model = Model.open(model_dir)
    return Phase(
        LayerDropoutObjective(load_dense(model), rate),
        task_pairs(model_dir, 16),
        OptimizationRecipe(max_steps=6, batch_size=4, learning_rate=0.01, checkpoint_steps=2),
        spec=model.spec,
        folder=out,
        seed=0,
        watcher=watcher,
    )


def outputs(model: PreTrainedModel) -> torch.Tensor:
    sources = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    targets = torch.full((2, 3), FIRST_TOKEN)
    logits: torch.Tensor = model(input_ids=sources, decoder_input_ids=targets, use_cache=False).logits
    return logits


def test_layers_are_drawn_at_the_rate_and_the_first_one_stays() -> None:
    torch.manual_seed(0)
    drawn = [draw(5, 0.25) for _ in range(4000)]
    assert all(kept[0] == 0 and list(kept) == sorted(set(kept)) for kept in drawn)
    for layer in range(1, 5):
        assert sum(layer in kept for kept in drawn) / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert draw(5, 0.0) == (0, 1, 2, 3, 4)
    assert draw(1, 0.9) == (0,)


@pytest.mark.parametrize("kept", [(0,), (0, 2), (0, 1, 2)])
def test_within_the_block_the_model_is_the_shortened_one(model_dir: Path, kept: tuple[int, ...]) -> None:
    model = load_dense(Model.open(model_dir)).eval()
    before = outputs(model)
    with only_layers(model, kept):
        found = outputs(model)
    torch.testing.assert_close(found, outputs(shorten_decoder(model, kept).eval()), rtol=0, atol=0)
    assert len(layers_of(model, "decoder")) == LAYERS
    torch.testing.assert_close(outputs(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["bart", "marian", "m2m_100", "mt5", "umt5"])
def test_every_family(family: str, tmp_path: Path) -> None:
    model = load_dense(Model.open(build_tiny(CASES[family], tmp_path / "model"))).eval()
    with only_layers(model, (0,)):
        found = outputs(model)
    torch.testing.assert_close(found, outputs(shorten_decoder(model, (0,)).eval()), rtol=0, atol=0)
    assert not torch.equal(found, outputs(model))


def test_layers_that_are_left_out_get_no_gradient(model_dir: Path) -> None:
    model = load_dense(Model.open(model_dir))
    with only_layers(model, (0, 2)):
        torch.autograd.backward(outputs(model).sum())
    got = [next(layer.parameters()).grad is not None for layer in layers_of(model, "decoder")]
    assert got == [True, False, True]


def test_an_error_brings_the_layers_back(model_dir: Path) -> None:
    model = load_dense(Model.open(model_dir))
    with pytest.raises(IndexError), only_layers(model, (0,)):
        model(input_ids=torch.tensor([[10**6]]), decoder_input_ids=torch.tensor([[0]]))
    assert len(layers_of(model, "decoder")) == LAYERS


def test_training_draws_anew_for_every_micro_batch(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    phase = phase_of(model_dir, tmp_path, 0.5)
    model = phase.objective.module
    assert isinstance(model, PreTrainedModel)
    decoder = model.get_decoder()
    forward = decoder.forward

    def counted(*args: object, **kwargs: object) -> object:
        ran.append(len(layers_of(model, "decoder")))
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder, "forward", counted)
    phase.run()
    assert len(ran) == 6
    assert min(ran) >= 1
    assert len(set(ran)) > 1, "always as many layers"
    ran.clear()
    phase.validation = task_pairs(model_dir, 5)
    phase.validate()
    assert set(ran) == {LAYERS}, "validation is of the whole model"


def test_an_interrupted_run_draws_the_same_layers(model_dir: Path, tmp_path: Path) -> None:
    def trained(out: str, rate: float) -> dict[str, torch.Tensor]:
        phase = phase_of(model_dir, tmp_path / out, rate)
        phase.run()
        return phase.objective.module.state_dict()

    whole = trained("whole", 0.5)
    with pytest.raises(KeyboardInterrupt):
        phase_of(model_dir, tmp_path / "out", 0.5, Interrupt(3)).run()
    torch.manual_seed(99)
    resumed = trained("out", 0.5)
    for name, weight in whole.items():
        torch.testing.assert_close(resumed[name], weight, rtol=0, atol=0, msg=name)
    without = trained("without", 0.0)
    assert any(not torch.equal(weight, without[name]) for name, weight in whole.items())
