"""Where a pool's threads run: physical cores, the caches they share, and memory nodes."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from server.engine.machine.cpus import allowed_cpus

_DEVICES = Path("/sys/devices")


@dataclass(frozen=True)
class Core:
    """A physical core, or the part of it that this process may use."""

    cpus: tuple[int, ...]  # its hardware threads
    node: int  # the node whose memory is close
    cache: int  # the first of the processors that share its largest cache
    slow: bool  # the processor has faster ones


@dataclass(frozen=True)
class Placement:
    """The cache domain of each thread of a pool, and the processors of each domain."""

    domains: tuple[int, ...]  # of each thread, ascending
    cpus: tuple[int, ...]
    cpu_domains: tuple[int, ...]  # of each of `cpus`


def physical_cores(allowed: Collection[int], devices: Path = _DEVICES) -> list[Core]:
    """The cores of `allowed`, grouped by node and by cache, fast cores before slow ones.

    If the system says nothing, every processor is a core, and all share one cache.
    """
    cpus = devices / "system" / "cpu"
    slow = _slow_cpus(allowed, devices)
    found = {}
    for cpu in sorted(allowed):
        folder = cpus / f"cpu{cpu}"
        siblings = _listed(folder / "topology" / "thread_siblings_list") or [cpu]
        node = next((int(entry.name[4:]) for entry in folder.glob("node[0-9]*")), 0)
        sharing = _listed(folder / "cache" / "index3" / "shared_cpu_list")
        sharing = sharing or _listed(folder / "topology" / "package_cpus_list")
        found[min(siblings)] = Core(
            cpus=tuple(sorted({cpu, *siblings} & set(allowed))),
            node=node,
            cache=min(sharing, default=0),
            slow=cpu in slow,
        )
    return sorted(found.values(), key=lambda core: (core.slow, core.node, core.cache, core.cpus))


def default_threads(usable: int, cores: Collection[Core] | None = None, *, pools: int = 1) -> int:
    """Default number of threads for each of `pools` pools: a share of the physical cores, within one memory node; all
    pools together have at most the `usable` threads that may run at once.

    A second thread on a core takes as much from the first as it gives. Barriers and weights across nodes cost more
    than the other node's cores give: on such a machine, one process per node serves more.
    """
    cores = physical_cores(allowed_cpus()) if cores is None else cores
    nodes = [core.node for core in cores]
    largest = max((nodes.count(node) for node in nodes), default=1)
    return max(1, min(min(usable, len(cores)) // pools, largest))


def placement(threads: int, cores: list[Core] | None = None) -> Placement | None:
    """Where the threads of a pool should run; None if the system decides better.

    Only a pool with as many threads as this process has cores is placed. Several smaller pools, of other models or
    processes, would all land on the same first cores.

    A thread stays on the cores that share its cache, so it can still make way for another process. The core of the
    caller, which is thread 0, is left out: systems wake a second thread on the core of the thread that woke it, where
    the two then take turns.
    """
    cores = physical_cores(allowed_cpus()) if cores is None else cores
    if threads < 2 or threads != len(cores):
        return None
    places = [(core.slow, core.node, core.cache) for core in cores]
    numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
    domains = tuple(numbers[place] for place in places)
    pairs = [(cpu, domain) for core, domain in zip(cores[1:], domains[1:], strict=True) for cpu in core.cpus]
    return Placement(domains=domains, cpus=tuple(c for c, _ in pairs), cpu_domains=tuple(d for _, d in pairs))


def _slow_cpus(allowed: Collection[int], devices: Path) -> set[int]:
    slow = set(_listed(devices / "cpu_atom" / "cpus"))  # Intel's efficient cores
    capacities = {cpu: _listed(devices / "system" / "cpu" / f"cpu{cpu}" / "cpu_capacity") for cpu in allowed}  # ARM's
    known = {cpu: capacity[0] for cpu, capacity in capacities.items() if capacity}
    return slow | {cpu for cpu, capacity in known.items() if 2 * capacity < max(known.values())}


def _listed(file: Path) -> list[int]:
    """The numbers in a list such as 0-3,8; none if there is no such file."""
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError:
        return []
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
