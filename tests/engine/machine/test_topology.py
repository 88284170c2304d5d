"""Machines that are made up as files, as Linux shows its own."""

from pathlib import Path

import pytest

from server.engine.machine.topology import default_threads, physical_cores, placement


def made_up(
    root: Path, *, cpus: int, siblings: int = 1, cache: int | None = None, nodes: int = 1, slow: str = ""
) -> Path:
    """`cpus` hardware threads, the second ones of all cores after the first ones; `cache` cores share one."""
    cores = cpus // siblings
    for cpu in range(cpus):
        folder = root / "system" / "cpu" / f"cpu{cpu}"
        core = cpu % cores
        (folder / "topology").mkdir(parents=True)
        both = ",".join(str(core + i * cores) for i in range(siblings))
        (folder / "topology" / "thread_siblings_list").write_text(both + "\n")
        (folder / f"node{core * nodes // cores}").mkdir()
        if cache:
            first = core // cache * cache
            lists = ",".join(f"{first + i * cores}-{first + cache - 1 + i * cores}" for i in range(siblings))
            (folder / "cache" / "index3").mkdir(parents=True)
            (folder / "cache" / "index3" / "shared_cpu_list").write_text(lists + "\n")
    if slow:
        (root / "cpu_atom").mkdir()
        (root / "cpu_atom" / "cpus").write_text(slow + "\n")
    return root


def test_hardware_threads_are_not_cores(tmp_path: Path) -> None:
    machine = made_up(tmp_path, cpus=32, siblings=2, cache=8)
    cores = physical_cores(range(32), machine)
    assert [core.cpus for core in cores] == [(i, i + 16) for i in range(16)]
    assert [core.cache for core in cores] == [0] * 8 + [8] * 8
    assert default_threads(32, cores) == 16


def test_only_what_the_process_may_use_counts(tmp_path: Path) -> None:
    machine = made_up(tmp_path, cpus=32, siblings=2, cache=8)
    cores = physical_cores({3, 19, 20, 9}, machine)
    assert [core.cpus for core in cores] == [(3, 19), (20,), (9,)]
    assert default_threads(4, cores) == 3
    assert default_threads(2, cores) == 2  # by quota


def test_one_pool_takes_one_node(tmp_path: Path) -> None:
    cores = physical_cores(range(64), made_up(tmp_path, cpus=64, cache=8, nodes=2))
    assert default_threads(64, cores) == 32
    assert placement(32, cores) is None
    own = placement(32, cores[32:])
    assert own is not None
    assert own.domains == tuple(i // 8 for i in range(32))


def test_slow_cores_come_last(tmp_path: Path) -> None:
    cores = physical_cores(range(12), made_up(tmp_path, cpus=12, cache=12, slow="0-7"))
    assert [core.cpus[0] for core in cores] == [8, 9, 10, 11, *range(8)]
    whole = placement(12, cores)
    assert whole is not None
    assert whole.domains == (0,) * 4 + (1,) * 8


def test_of_arm_the_slow_ones_have_little_capacity(tmp_path: Path) -> None:
    machine = made_up(tmp_path, cpus=4)
    for cpu, capacity in enumerate((381, 381, 1024, 871)):
        (machine / "system" / "cpu" / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")
    assert [core.cpus[0] for core in physical_cores(range(4), machine)] == [2, 3, 0, 1]


def test_the_caller_keeps_a_core(tmp_path: Path) -> None:
    cores = physical_cores(range(8), made_up(tmp_path, cpus=8, siblings=2, cache=2))
    own = placement(4, cores)
    assert own is not None
    assert own.domains == (0, 0, 1, 1)
    assert own.cpus == (1, 5, 2, 6, 3, 7)  # without 0 and its sibling 4
    assert own.cpu_domains == (0, 0, 1, 1, 1, 1)


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_a_pool_of_another_size_than_the_machine_is_left_to_the_system(tmp_path: Path, threads: int) -> None:
    assert placement(threads, physical_cores(range(4), made_up(tmp_path, cpus=4))) is None


def test_where_nothing_is_told_every_processor_is_a_core(tmp_path: Path) -> None:
    cores = physical_cores({0, 1, 5}, tmp_path)
    assert [core.cpus for core in cores] == [(0,), (1,), (5,)]
    assert default_threads(3, cores) == 3


def test_this_machine_has_a_core() -> None:
    assert default_threads(1) == 1
    assert default_threads(10_000) >= 1
