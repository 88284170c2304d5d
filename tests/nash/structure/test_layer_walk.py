"""Layer by layer, a stack computes what it computes in a pass through the whole model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_store.model.config import layout_of
from model_store.model.layout import Stack
from model_store.model.model import Model
from nash.data.examples import IGNORED
from nash.modeling.folders import load_dense
from nash.structure.layer_walk import LayerWalk
from nash.training.objective import decoder_inputs
from tests.nash.pruned_families import FAMILIES, build

LENGTHS = [(5, 3), (2, 6)]  # of the sources and targets of a batch's pairs


def batch_of(vocabulary: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocabulary, (2, 2, 6), generator=generator)
    sources, targets = (
        torch.stack([torch.arange(6) < length for length in side]) for side in zip(*LENGTHS, strict=True)
    )
    labels = ids[1].masked_fill(~targets, IGNORED)
    return {"input_ids": ids[0].masked_fill(~sources, 0), "attention_mask": sources.long(), "labels": labels}


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_sublayer_gets_what_it_gets_in_the_whole_model(name: str, stack: Stack, tmp_path: Path) -> None:
    build(FAMILIES[name], tmp_path)
    model = load_dense(Model.open(tmp_path)).eval()
    size = min(filter(None, [getattr(model.config, "decoder_vocab_size", None), model.config.vocab_size]))
    batches = [batch_of(size, seed) for seed in (0, 1)]
    sublayers = layout_of(Model.open(tmp_path).spec).sublayers(stack)
    walk = LayerWalk(model, stack, batches)
    for sublayer in sublayers:
        if sublayer.layer > walk.layer:
            walk.advance()
        for batch, ((inputs, outputs),) in zip(batches, walk.passes(sublayer), strict=True):
            seen: list[tuple[Tensor, Tensor]] = []

            hook = model.get_submodule(sublayer.out).register_forward_hook(
                lambda _, given, output, seen=seen: seen.append((given[0], output))
            )
            with torch.no_grad():
                model(**decoder_inputs(model.config, batch))
            hook.remove()
            real = batch["attention_mask"].bool() if stack == "encoder" else batch["labels"] != IGNORED
            for found, whole in zip((inputs, outputs), seen[0], strict=True):
                assert len(found) == int(real.sum())
                torch.testing.assert_close(found, whole.view(*real.shape, -1)[real], rtol=1e-5, atol=1e-6)


def test_a_changed_weight_counts_from_its_layer_on(tmp_path: Path) -> None:
    build(FAMILIES["t5"], tmp_path)
    model = load_dense(Model.open(tmp_path))
    first, second = (s for s in layout_of(Model.open(tmp_path).spec).sublayers("encoder")[:4:2])
    assert (first.layer, second.layer) == (0, 1)
    walk = LayerWalk(model, "encoder", [batch_of(model.config.vocab_size, 0)])
    (((_, before),),) = walk.passes(first)
    with torch.no_grad():
        model.get_submodule(first.out).weight.mul_(2.0)
    (((_, after),),) = walk.passes(first)
    torch.testing.assert_close(after, 2 * before)
    walk.advance()
    with torch.no_grad():
        model.get_submodule(first.out).weight.mul_(0.5)  # too late
    (((inputs, _),),) = walk.passes(second)
    changed = LayerWalk(model, "encoder", [batch_of(model.config.vocab_size, 0)])
    changed.advance()
    (((fresh, _),),) = changed.passes(second)
    assert not torch.allclose(inputs, fresh)
