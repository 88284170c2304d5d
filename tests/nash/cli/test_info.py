"""`nash info` and `nash --version`: what they say, and that they load nothing heavy for it."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from server.engine.capabilities import DTYPES, speed_order, why_not
from server.engine.interface.config import EngineConfig
from server.engine.machine import cpus
from server.engine.native.operator import set_choice as sets
from tests.nash.command_line import nash

ROOT = Path(__file__).parents[3]
LIGHT = """
import sys
sys.argv = ["nash", *sys.argv[1:]]
from nash.cli.main import main
try:
    main()
finally:
    print([name for name in ("torch", "transformers", "numpy") if name in sys.modules], file=sys.stderr)
"""


def test_the_document() -> None:
    document = nash("info", "--json").document()
    assert document["version"] == version("nash")
    assert (document["torch"], document["transformers"]) == (version("torch"), version("transformers"))
    assert document["python"] == ".".join(map(str, sys.version_info[:3]))
    cpu = document["cpu"]
    assert cpu["name"] == cpus.cpu_name()
    assert cpu["instruction_sets"] == list(cpus.instruction_sets())
    assert (cpu["threads"], cpu["cores"], cpu["quota"]) == (
        cpus.usable_cpus(),
        cpus.available_cores(),
        cpus.cpu_quota(),
    )
    assert (cpu["chosen"], cpu["why"]) == (sets.chosen_set().name, sets.chosen_set().why)
    on_cpu = [row for row in document["dtypes"] if row["device"] == "cpu"]
    assert [row["dtype"] for row in on_cpu if row["auto"]] == list(speed_order(EngineConfig()))
    assert {row["dtype"] for row in on_cpu} == set(DTYPES)
    assert {row["dtype"]: row["refused"] for row in on_cpu} == {
        dtype: why_not(EngineConfig(dtype=dtype)) for dtype in DTYPES
    }
    assert all((row["engine"] is None) == (row["refused"] is not None) for row in on_cpu)
    training = document["training"]
    assert training["auto"] in training["precisions"]
    assert ("bfloat16" in training["precisions"]) != ("bfloat16" in training["refused"])


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NASH_CPU_ISA", raising=False)
    monkeypatch.setattr(cpus, "instruction_sets", lambda: ("avx2", "fma"))
    monkeypatch.setattr(cpus, "cpu_quota", lambda root=None: 1.5)
    monkeypatch.setattr("nash.cli.info.cpu_quota", lambda: 1.5)
    monkeypatch.setattr(sets, "available_sets", lambda: ())
    monkeypatch.setattr(sets, "runs_here", lambda each: False)
    monkeypatch.setattr("nash.device.cuda_devices", tuple)
    outcome = nash("info")
    assert outcome.code == 0, outcome.err
    lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    said = {name.strip(): value.strip() for name, value in lines.items()}
    assert said["threads"].startswith("1 (")
    assert "a quota of 1.5" in said["threads"]
    assert said["native operator"].startswith("not used (this processor has neither ")
    assert said["serving: float32 on cpu"] == "torch"
    assert said["serving: bfloat16 on cpu"].startswith("dtype 'bfloat16' is not possible in PyTorch on this CPU")
    assert said["training on cpu"].startswith("float32 by auto (no bfloat16: ")


def test_a_forced_set_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NASH_CPU_ISA", "avx10000")
    outcome = nash("info")
    assert outcome.code == 2
    assert outcome.err.startswith("error: NASH_CPU_ISA is 'avx10000': it must be one of avx512-bf16, ")
    assert outcome.err.count("\n") == 1


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="a GPU's training asks torch")
@pytest.mark.parametrize("arguments", [["info", "--json"], ["--version"]])
def test_neither_loads_anything_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", LIGHT, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    if arguments == ["--version"]:
        assert done.stdout == f"nash {version('nash')}\n"
    else:
        assert json.loads(done.stdout)["version"] == version("nash")
