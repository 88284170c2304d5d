"""What imports what, read from the source: for the drawings of docs/architecture.md and for the rules of the house.

A *room* is a folder that has modules and no folders below it. In a folder that has folders below it, every module is a
room of its own: an `errors.py` at the head of a package stands below everything, an `engine.py` above.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("nash", "server", "model_store", "loadtest")

Graph = Mapping[str, frozenset[str]]


def module_name(path: Path, root: Path = ROOT) -> str:
    """The dotted name of a file; a package's for its `__init__.py`."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imported_names(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, also inside functions; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_graph(root: Path = ROOT) -> Graph:
    """Which modules of ours each module imports. A package's `__init__.py` is none: it imports nothing of ours."""
    files = {
        module_name(path, root): path
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    return {name: frozenset(set(imported_names(path)) & files.keys() - {name}) for name, path in files.items()}


def rooms_of(modules: Graph) -> dict[str, str]:
    """By module, its room."""
    folders = {name.rpartition(".")[0] for name in modules}
    branching = {above for above in folders if any(each.startswith(f"{above}.") for each in folders)}
    return {name: name if (folder := name.rpartition(".")[0]) in branching else folder for name in modules}


def room_graph(modules: Graph) -> Graph:
    """Which rooms each room imports from."""
    rooms = rooms_of(modules)
    arrows: dict[str, set[str]] = defaultdict(set)
    for name, targets in modules.items():
        arrows[rooms[name]] |= {rooms[target] for target in targets} - {rooms[name]}
    return {room: frozenset(targets) for room, targets in arrows.items()}


def circle_in(graph: Graph) -> list[str] | None:
    """The first circle that is found, its beginning repeated at its end; None where there is none."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph.get(node, ())):
            if (found := search(target, [*path, node])) is not None:
                return found
        done.add(node)
        return None

    for node in sorted(graph):
        if (found := search(node, [])) is not None:
            return found
    return None


def reachable(graph: Graph, start: str) -> frozenset[str]:
    """Everything that `start` imports, directly or not, and itself."""
    seen, left = {start}, [start]
    while left:
        fresh = set(graph.get(left.pop(), ())) - seen
        seen |= fresh
        left += fresh
    return frozenset(seen)


def without_detours(graph: Graph) -> Graph:
    """The arrows that no longer way stands for."""
    behind = {node: reachable(graph, node) - {node} for node in graph}
    return {
        node: frozenset(
            target for target in targets if not any(target in behind[other] for other in targets - {target})
        )
        for node, targets in graph.items()
    }


def depths(graph: Graph) -> dict[str, int]:
    """How far above the bottom each node stands: one more than the highest that it imports from."""
    known: dict[str, int] = {}

    def depth(node: str) -> int:
        if node not in known:
            known[node] = 1 + max((depth(target) for target in graph.get(node, ())), default=-1)
        return known[node]

    return {node: depth(node) for node in graph}
