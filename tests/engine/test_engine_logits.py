"""Logits against transformers', teacher-forced, under the rule of equal results: 1e-5 x max(1, max abs logit)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from tests.engine.compact import hollow, ragged, shortened, write_compact, write_zeroed
from tests.engine.reference import engine_logits, load_reference, random_sources, reference_logits

TOLERANCES = [("float32", 1e-5), ("float64", 1e-10)]
SOURCES = random_sources(5, longest=70)
TARGETS = [[0, *s][:24] for s in random_sources(40, longest=60, seed=1) if len(s) >= 23][:5]


def check_same_logits(reference_dir: Path, ours_dir: Path, dtype: str, tolerance: float) -> None:
    reference = load_reference(reference_dir, getattr(torch, dtype))
    ours = engine_logits(ours_dir, Model.open(ours_dir).spec, dtype, SOURCES, TARGETS)
    for source, target, logits in zip(SOURCES, TARGETS, ours, strict=True):
        expected = reference_logits(reference, source, target)
        scale = max(1.0, expected.abs().max().item())
        assert (logits - expected).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_dense_logits_are_those_of_transformers(dense_dir: Path, dtype: str, tolerance: float) -> None:
    check_same_logits(dense_dir, dense_dir, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("cut", [ragged, shortened, hollow])
def test_compact_logits_are_those_of_the_dense_model_with_zeroed_parts(
    dense_dir: Path,
    cut: Callable[[ModelSpec], ModelSpec],
    dtype: str,
    tolerance: float,
    tmp_path: Path,
) -> None:
    spec = cut(Model.open(dense_dir).spec)
    compact = write_compact(dense_dir, spec, tmp_path / "compact")
    assert Model.open(compact).spec == spec
    check_same_logits(write_zeroed(dense_dir, spec, tmp_path / "zeroed"), compact, dtype, tolerance)


def test_bfloat16_logits_are_near_those_of_float64(dense_dir: Path) -> None:
    spec = Model.open(dense_dir).spec
    exact = torch.stack(engine_logits(dense_dir, spec, "float64", SOURCES, TARGETS))
    coarse = torch.stack(engine_logits(dense_dir, spec, "bfloat16", SOURCES, TARGETS)).double()
    theirs = torch.stack(
        [
            reference_logits(load_reference(dense_dir, torch.bfloat16), source, target).double()
            for source, target in zip(SOURCES, TARGETS, strict=True)
        ]
    )
    assert (coarse - exact).norm() <= 1.5 * (theirs - exact).norm()
