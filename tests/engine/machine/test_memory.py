"""How much memory is left, where the system gives this process less than the machine has."""

from pathlib import Path

import pytest
import torch

from server.engine.machine import host_memory, memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8000 kB available, on which this process is in the control group /outer/inner."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    (tmp_path / "own").write_text("1:name=systemd:/else\n0::/outer/inner\n")
    (tmp_path / "groups" / "outer" / "inner").mkdir(parents=True)
    monkeypatch.setattr(host_memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "_OWN_GROUP", tmp_path / "own")
    monkeypatch.setattr(host_memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def limit(group: Path, most: str, used: int, files: int) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {files}\n")


def test_without_a_limit_it_is_the_machine_s(machine: Path) -> None:
    assert memory.available_bytes(CPU) == 8000 * 1024
    limit(machine / "groups" / "outer" / "inner", "max", 500, 0)
    assert memory.available_bytes(CPU) == 8000 * 1024
    (machine / "own").unlink()
    assert memory.available_bytes(CPU) == 8000 * 1024


def test_the_tightest_control_group_counts(machine: Path) -> None:
    inner, outer = machine / "groups" / "outer" / "inner", machine / "groups" / "outer"
    limit(inner, "3000000", 1_000_000, 200_000)
    assert memory.available_bytes(CPU) == 2_200_000  # files that were read give way
    limit(outer, "1500000", 1_000_000, 0)
    assert memory.available_bytes(CPU) == 500_000
    limit(machine / "groups", "1000", 5000, 0)  # a container sees its own group as the first
    assert memory.available_bytes(CPU) == 0
