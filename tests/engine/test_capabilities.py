"""What a machine runs, and in which words it refuses the rest; other machines than this one are made up."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_store.model.model import Model
from server.engine import capabilities, engine
from server.engine.capabilities import DTYPES, check_machine, engine_name, speed_order, torch_bfloat16, why_not
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.machine import cpus, cuda
from server.engine.machine.cuda import CudaDevice
from server.engine.native.operator import set_choice as native_sets

AVX2 = ("avx2", "fma", "f16c")
SKYLAKE = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
ICE_LAKE = (*SKYLAKE, "avx512_vnni")
ZEN_4 = (*ICE_LAKE, "avx512_bf16")
ALDER_LAKE = (*AVX2, "avx_vnni")
NEOVERSE = ("asimd", "asimddp", "i8mm", "bf16")
Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Make this machine another one."""

    def become(sets: tuple[str, ...], operator: tuple[str, ...] = (), devices: tuple[CudaDevice, ...] = ()) -> None:
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        monkeypatch.delenv("NASH_CPU_ISA", raising=False)
        monkeypatch.setattr(cpus, "instruction_sets", lambda: sets)
        monkeypatch.setattr(native_sets, "available_sets", lambda: operator)
        monkeypatch.setattr(capabilities, "cuda_devices", lambda: devices)

    return become


@pytest.mark.parametrize(
    ("sets", "order", "also"),
    [
        (AVX2, ("float32",), {"float64"}),
        (SKYLAKE, ("float32",), {"float64", "bfloat16"}),  # imitated: right, and slower than float32
        (ICE_LAKE, ("float32",), {"float64", "bfloat16", "int8", "int4"}),
        (ZEN_4, ("bfloat16", "float32"), {"float64", "int8", "int4"}),
        (ALDER_LAKE, ("float32",), {"float64", "int8", "int4"}),
        (NEOVERSE, ("bfloat16", "float32"), {"float64"}),
        ((), ("float32",), {"float64"}),
    ],
)
def test_without_the_operator(machine: Machine, sets: tuple[str, ...], order: tuple[str, ...], also: set[str]) -> None:
    machine(sets)
    config = EngineConfig()
    assert engine_name(config) == "torch"
    assert speed_order(config) == order
    assert {dtype for dtype in DTYPES if why_not(replace(config, dtype=dtype)) is None} == {*order, *also}


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_what_pytorch_cannot_do_names_what_the_machine_has(machine: Machine, t5_dir: Path, dtype: str) -> None:
    machine(AVX2)
    with pytest.raises(
        LoadError, match=rf"^dtype '{dtype}' is not possible in PyTorch on this CPU: .* avx2, fma, f16c"
    ):
        Engine.load(Model.open(t5_dir), EngineConfig(dtype=dtype))


def test_with_the_operator(machine: Machine) -> None:
    machine(AVX2, ("avx2",))
    assert speed_order(EngineConfig()) == ("int8", "bfloat16", "float32")
    assert engine_name(EngineConfig(dtype="int8")) == "native-avx2"
    assert engine_name(EngineConfig(dtype="float64")) == "torch"
    for other in (EngineConfig(backend="torch"), EngineConfig(graphs="on"), EngineConfig(quantization="bnb-nf4")):
        assert engine_name(other) == "torch"
        assert speed_order(other) == ("float32",)
    assert why_not(EngineConfig(dtype="bfloat16", quantization="bnb-nf4")) is not None


def test_cuda(machine: Machine) -> None:
    machine(ZEN_4, ("avx512-bf16",), (CudaDevice(name="T4", major=7, minor=5), CudaDevice(name="H", major=9, minor=0)))
    assert speed_order(EngineConfig(device="cuda")) == ("float16", "float32")
    assert speed_order(EngineConfig(device="cuda:1")) == ("bfloat16", "float16", "float32")
    refusal = why_not(EngineConfig(device="cuda:0", dtype="bfloat16"))
    assert refusal == (
        "dtype 'bfloat16' needs compute capability 8.0 or higher, but 'cuda:0' (T4) has 7.5: use 'float16' or 'float32'"
    )
    assert "use quantization 'bnb-int8'" in str(why_not(EngineConfig(device="cuda", dtype="int8")))
    assert engine_name(EngineConfig(device="cuda")) == "torch"


def test_a_driver_is_asked_or_is_not_there() -> None:
    cuda.cuda_devices.cache_clear()
    assert bool(cuda.cuda_devices()) >= torch.cuda.is_available()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "CPU", "meta"])
def test_a_device_that_does_not_exist(t5_dir: Path, device: str) -> None:
    with pytest.raises(LoadError, match=f"^device '{device}' is not known: use 'cpu', 'cuda' or 'cuda:1'$"):
        Engine.load(Model.open(t5_dir), EngineConfig(device=device))


def test_a_dtype_that_does_not_exist() -> None:
    check_machine(EngineConfig(dtype="auto"))
    with pytest.raises(LoadError, match=r"'int3' is not supported: use one of auto, float32, bfloat16, .*int8, int4$"):
        check_machine(EngineConfig(dtype="int3"))


def test_a_forced_set(machine: Machine, monkeypatch: pytest.MonkeyPatch, t5_dir: Path) -> None:
    machine(ZEN_4, ("avx512-bf16", "avx2"))
    assert native_sets.chosen_set().name == "avx512-bf16"
    monkeypatch.setenv("NASH_CPU_ISA", "avx2")
    assert native_sets.chosen_set().name == "avx2"
    assert engine_name(EngineConfig()) == "native-avx2"
    monkeypatch.setenv("NASH_CPU_ISA", "neon")
    monkeypatch.setattr(native_sets, "runs_here", lambda each: each.machine == "x86_64")
    with pytest.raises(
        LoadError, match=r"^NASH_CPU_ISA is 'neon', which does not run on this processor: .* avx512-bf16, avx2$"
    ):
        Engine.load(Model.open(t5_dir), EngineConfig())


def test_threads_above_the_quota(monkeypatch: pytest.MonkeyPatch, t5_dir: Path) -> None:
    for module in (engine, capabilities):
        monkeypatch.setattr(module, "usable_cpus", lambda: 1)
    with pytest.raises(LoadError, match=r"^threads is 2, but this process may use .*: give at most 1$"):
        Engine.load(Model.open(t5_dir), EngineConfig(threads=2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Engine.load(Model.open(t5_dir), EngineConfig())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


EVERY_CHOICE = """
import itertools, json, sys
from pathlib import Path
import torch
from server.engine.capabilities import DTYPES, torch_bfloat16
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from model_store.model.model import Model

outcomes = {}
for dtype, quantization, graphs in itertools.product(DTYPES, ("none", "bnb-int8", "bnb-nf4"), ("auto", "on")):
    config = EngineConfig(
        backend="torch", dtype=dtype, quantization=quantization, graphs=graphs, slots=2, max_source_tokens=9,
        max_new_tokens=4, threads=1,
    )
    name = f"{dtype} {quantization} {graphs}"
    try:
        engine = Engine.load(Model.open(Path(sys.argv[1])), config)
        answers = engine.generate([[5, 6, 1], [7, 1]], GenerationParameters(max_new_tokens=3, ignore_eos=True))
        outcomes[name] = [answer.error or "" for answer in answers]
    except LoadError as error:
        outcomes[name] = str(error)
agreed = (torch_bfloat16() is None) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
print(json.dumps([agreed, outcomes]))
"""


def _instructions() -> list[str]:
    """What PyTorch may be held to here, as `ONEDNN_MAX_CPU_ISA` has it; more than the processor has changes nothing."""
    fewer = ["AVX2"] if "avx512f" in cpus.processor_features() else []
    return [*fewer, *(["AVX512_CORE"] if "avx512_vnni" in cpus.processor_features() else []), "DEFAULT"]


@pytest.mark.parametrize("most", _instructions())
def test_no_choice_ends_in_another_librarys_exception(t5_dir: Path, most: str) -> None:
    """On PyTorch held to fewer instructions, as other machines have; ours and PyTorch's word on bfloat16 agree."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": most}
    if most == "AVX2":
        environment["ATEN_CPU_CAPABILITY"] = "avx2"
    command = [sys.executable, "-c", EVERY_CHOICE, str(t5_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    agreed, outcomes = json.loads(done.stdout)
    assert agreed
    assert outcomes["float32 none auto"] == outcomes["float64 none on"] == ["", ""]
    assert all(isinstance(outcome, str) or outcome == ["", ""] for outcome in outcomes.values()), outcomes
    assert all("\n" not in outcome for outcome in outcomes.values() if isinstance(outcome, str))
    features = cpus.processor_features()
    if most == "AVX2" or ("avx2" in features and "avx512f" not in features):
        assert outcomes["bfloat16 none auto"].startswith("dtype 'bfloat16' is not possible in PyTorch on this CPU: ")
        assert outcomes["int8 none auto"].startswith("dtype 'int8' is not possible in PyTorch on this CPU: ")


def test_pytorch_agrees_on_bfloat16_here() -> None:
    assert (torch_bfloat16() is None) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
