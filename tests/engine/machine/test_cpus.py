"""How much of a machine a process may use, read from made-up proc and sys folders."""

from pathlib import Path

import pytest

from server.engine.machine import cpus

PERIOD = 100_000


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available_cores", lambda: 8)


def version_2(root: Path, own: str, quotas: dict[str, str]) -> None:
    write(root / "proc/self/cgroup", f"0::{own}\n")
    for folder, quota in quotas.items():
        write(root / "sys/fs/cgroup" / folder / "cpu.max", f"{quota} {PERIOD}\n")


@pytest.mark.parametrize(
    ("quotas", "quota", "usable"),
    [
        ({"pod/box": "250000"}, 2.5, 2),
        ({"pod/box": "max"}, None, 8),
        ({"pod/box": "400000", "pod": "300000"}, 3.0, 3),  # what is above holds too
        ({"": "150000"}, 1.5, 1),  # a container that sees its own group as the root
        ({"pod/box": "50000"}, 0.5, 1),
        ({"pod/box": "6400000"}, 64.0, 8),
        ({"elsewhere": "100000"}, None, 8),
        ({"pod/box": "nonsense"}, None, 8),
    ],
)
def test_a_quota_of_version_2(tmp_path: Path, quotas: dict[str, str], quota: float | None, usable: int) -> None:
    version_2(tmp_path, "/pod/box", quotas)
    assert cpus.cpu_quota(tmp_path) == quota
    assert cpus.usable_cpus(tmp_path) == usable


@pytest.mark.parametrize(("quota_us", "usable"), [("300000", 3), ("-1", 8)])
def test_a_quota_of_version_1(tmp_path: Path, quota_us: str, usable: int) -> None:
    write(tmp_path / "proc/self/cgroup", "7:memory:/a\n4:cpu,cpuacct:/docker/a\n1:cpuset:/a\n")
    folder = tmp_path / "sys/fs/cgroup/cpu,cpuacct"  # docker's path is the host's, its mount the container's own
    write(folder / "cpu.cfs_quota_us", f"{quota_us}\n")
    write(folder / "cpu.cfs_period_us", f"{PERIOD}\n")
    assert cpus.usable_cpus(tmp_path) == usable


def test_without_groups_the_cores_count(tmp_path: Path) -> None:
    assert cpus.cpu_quota(tmp_path) is None
    assert cpus.usable_cpus(tmp_path) == 8
    assert cpus.numa_nodes(tmp_path) == 1
    for number in range(2):
        (tmp_path / f"sys/devices/system/node/node{number}").mkdir(parents=True)
    assert cpus.numa_nodes(tmp_path) == 2


def test_this_machine_has_a_name_and_sets_in_their_order() -> None:
    assert cpus.cpu_name()
    found = cpus.instruction_sets()
    assert [name for name in cpus._INSTRUCTION_SETS if name in found] == list(found)
    assert set(found) <= {
        word for line in Path("/proc/cpuinfo").read_text().splitlines() for word in line.split(":", 1)[-1].split()
    }


@pytest.mark.parametrize(
    ("most", "left"),
    [
        (None, ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile")),
        ("DEFAULT", ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile")),
        ("AVX512_CORE_BF16", ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16")),
        ("avx512_core_vnni", ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni")),
        ("AVX512_CORE", ("avx2", "fma", "avx512f", "avx512bw")),
        ("AVX2", ("avx2", "fma")),
        ("SSE41", ()),
    ],
)
def test_pytorch_can_be_held_to_fewer_sets(
    monkeypatch: pytest.MonkeyPatch, most: str | None, left: tuple[str, ...]
) -> None:
    every = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_tile")
    monkeypatch.setattr(cpus, "instruction_sets", lambda: every)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if most is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
    assert cpus.torch_instruction_sets() == left
