"""Which set of instructions the operator runs on, and that all of them say the same."""

import platform
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.native.backend import NativeBackend
from server.engine.native.operator import set_choice as sets
from server.engine.native.operator.library import library
from server.engine.native.operator.set_choice import VARIABLE, available_sets, chosen_set
from server.engine.native.operator.sets import BY_NAME
from server.engine.pytorch.backend import TorchBackend
from tests.engine.family_reference import STEPS, backend_logits, load_backend, targets, texts


@pytest.fixture
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with AVX2 and AVX-512 without VNNI, where all of x86's sets were built but avx512."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    features = frozenset(BY_NAME["avx512"].needs) | {"sse2"}
    monkeypatch.setattr(sets, "processor_features", lambda: features)
    monkeypatch.setattr(sets, "built", lambda each: each.machine == "x86_64" and each.name != "avx512")


@pytest.mark.usefixtures("_machine")
def test_the_best_that_was_built_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_sets() == ("avx2",)
    choice = chosen_set()
    assert (choice.name, choice.why) == ("avx2", "the best that was built; avx512 was not")
    monkeypatch.setattr(sets, "built", lambda each: each.machine == "x86_64")
    assert available_sets() == ("avx512", "avx2")
    choice = chosen_set()
    assert (choice.name, choice.why) == ("avx512", "the best that this processor runs")
    monkeypatch.setenv(VARIABLE, "avx2")
    choice = chosen_set()
    assert (choice.name, choice.why) == ("avx2", "NASH_CPU_ISA says so")


@pytest.mark.usefixtures("_machine")
@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ("avx1024", r"NASH_CPU_ISA is 'avx1024': it must be one of avx512-bf16, .*, neon; this machine has avx2$"),
        ("avx512-vnni", r"NASH_CPU_ISA is 'avx512-vnni', which does not run on this processor: this machine has avx2$"),
        ("neon", r"NASH_CPU_ISA is 'neon', which does not run on this processor: this machine has avx2$"),
        ("avx512", r"NASH_CPU_ISA is 'avx512', which was not built: this machine has avx2$"),
    ],
)
def test_a_set_that_is_not_there_is_refused(
    t5_dir: Path, monkeypatch: pytest.MonkeyPatch, forced: str, message: str
) -> None:
    monkeypatch.setenv(VARIABLE, forced)
    with pytest.raises(LoadError, match=message):
        Engine.load(Model.open(t5_dir), EngineConfig())


@pytest.mark.usefixtures("_machine")
def test_without_the_operator_pytorch_does_the_work(t5_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "built", lambda each: False)
    assert type(Engine.load(Model.open(t5_dir), EngineConfig())._backend) is TorchBackend
    reason = "it was not built, for want of a C\\+\\+ compiler; this processor would run avx512"
    with pytest.raises(LoadError, match=f"backend 'native' is not possible: {reason}"):
        Engine.load(Model.open(t5_dir), EngineConfig(backend="native"))
    monkeypatch.setattr(sets, "processor_features", lambda: frozenset({"sse2"}))
    with pytest.raises(LoadError, match="backend 'native' is not possible: this processor has neither AVX2 with FMA"):
        Engine.load(Model.open(t5_dir), EngineConfig(backend="native"))


@pytest.mark.skipif(len(available_sets()) < 2, reason="this machine has no two sets")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_all_sets_say_the_same(dense_dir: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What surrounds the products differs by last bits, and now and then one of them decides how a number is rounded
    to a cache or an activation's step. Where an instruction multiplies pairs of bfloat16, activations are rounded as
    well: this set need only be as near to what is exact.
    """
    spec = Model.open(dense_dir).spec
    sources, wanted = texts(spec, [5, 60, 1, 33, 17, 9]), targets(spec, 6)
    config = EngineConfig(dtype=dtype, slots=6, max_source_tokens=70, max_new_tokens=STEPS)
    logits: dict[str, Tensor] = {}
    for name in available_sets():
        monkeypatch.setenv(VARIABLE, name)
        assert library() is not None
        logits[name] = backend_logits(NativeBackend.load(Model.open(dense_dir), config), sources, wanted)
    exact = backend_logits(load_backend(dense_dir, "float64", slots=6), sources, wanted)
    first = logits.popitem()[1]  # the set that the most processors have
    for name, others in logits.items():
        if dtype == "float32":
            assert (others - first).abs().max() <= 1e-5 * max(1.0, exact.abs().max().item())
        elif name.endswith("bf16"):
            assert (others - exact).norm() <= 2 * (first - exact).norm()
        else:
            assert (others - first).norm() <= 0.2 * (first - exact).norm()
    assert torch.isfinite(first).all()
