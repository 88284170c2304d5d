"""The two drawings of docs/architecture.md, made from the imports: `python -m docs.drawings [--check]`.

`processes.svg` shows which rooms each process loads. `rooms.svg` shows which rooms import from which.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from docs.import_graph import (
    PACKAGES,
    ROOT,
    Graph,
    depths,
    module_graph,
    reachable,
    room_graph,
    rooms_of,
    without_detours,
)

FOLDER = ROOT / "docs"

_LINE = 20  # pixels, of a line of text
_CHARACTER = 7.3  # the width that 12 px of a monospace font take
_BOX = 26
_GAP = 14
_LEVEL = 62  # from one row of rooms to the next
_MARGIN = 16
_FEW = 3

_STYLE = """\
text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: #1f2328; }
text.title { font-weight: 600; }
text.small { fill: #59636e; }
rect { fill: #ffffff; stroke: #8c959f; rx: 4; }
rect.frame { fill: #f6f8fa; stroke: #d1d9e0; rx: 8; }
path { fill: none; stroke: #8c959f; }
path.head { fill: #8c959f; stroke: none; }
path.message { stroke: #0969da; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } text.small { fill: #9198a1; }
  rect { fill: #0d1117; stroke: #656c76; } rect.frame { fill: #151b23; stroke: #3d444d; }
  path { stroke: #656c76; } path.head { fill: #656c76; } path.message { stroke: #4493f8; }
}"""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A program that runs by itself."""

    title: str
    command: str
    module: str  # where it begins
    says: tuple[str, ...]  # what the drawing adds to its rooms


PROCESSES = (
    Process(
        title="HTTP process",
        command="python -m server",
        module="server.__main__",
        says=("no torch", "texts, tokens, admission, metrics"),
    ),
    Process(
        title="worker, one a variant",
        command="python -m server.worker",
        module="server.worker.worker",
        says=("an engine, no HTTP", "ends when its socket closes"),
    ),
    Process(
        title="offline",
        command="nash prune, sweep, evaluate, ...",
        module="nash.cli.main",
        says=("trains, prunes, publishes", "measures on the engine that serves"),
    ),
    Process(
        title="load test",
        command="nash loadtest",
        module="loadtest.__main__",
        says=("speaks HTTP alone",),
    ),
)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text{mark} x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<rect{mark} x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}"/>'


def _arrow(x1: float, y1: float, x2: float, y2: float, kind: str = "") -> str:
    """From the bottom of one box to the top of another."""
    mark = f' class="{kind}"' if kind else ""
    bend = (y2 - y1) / 2
    return (
        f'<path{mark} d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - 4:.0f}"/>'
        f'<path class="head" d="M{x2:.0f} {y2:.0f} l-4 -7 l8 0 z"/>'
    )


def _svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(label)}">'
    return "\n".join([opening, f"<style>\n{_STYLE}\n</style>", *parts, "</svg>", ""])


def cluster_of(room: str) -> str:
    """The frame in which a room is drawn."""
    return "server.engine" if room.startswith("server.engine.") else room.partition(".")[0]


def draw_rooms(graph: Graph) -> str:
    """Frames for the packages, rooms in rows by how far above the bottom they stand, arrows without detours."""
    arrows = without_detours(graph)
    rooms: dict[str, list[str]] = defaultdict(list)
    for room in graph:
        rooms[cluster_of(room)].append(room)
    parts: list[str] = []
    columns = (("nash",), ("server", "loadtest"), ("server.engine", "model_store"))
    x, bottom = float(_MARGIN), 0.0
    for column in columns:
        y, widest = float(_MARGIN), 0.0
        for cluster in column:
            drawn, width, height = _cluster(cluster, rooms[cluster], arrows, x, y)
            parts += drawn
            y += height + _GAP
            widest = max(widest, width)
        x += widest + _GAP
        bottom = max(bottom, y)
    return _svg(x, bottom, "Which folders import from which", parts)


def _cluster(name: str, rooms: Sequence[str], arrows: Graph, left: float, top: float) -> tuple[list[str], float, float]:
    """One frame: what is drawn, its width and its height."""
    inside = {room: frozenset(target for target in arrows[room] if target in rooms) for room in rooms}
    inside = dict(without_detours(inside))
    beyond = sorted({cluster_of(target) for room in rooms for target in arrows[room]} - {name})
    levels: dict[int, list[str]] = defaultdict(list)
    for room, depth in depths(inside).items():
        levels[depth].append(room)
    order = _ordered(levels, inside)
    label = {room: room.removeprefix(f"{name}.") for room in rooms}
    width_of = {room: len(label[room]) * _CHARACTER + 14 for room in rooms}
    rows = [order[level] for level in sorted(order, reverse=True)]
    widths = [sum(width_of[room] for room in row) + _GAP * (len(row) - 1) for row in rows]
    says = f"imports from {', '.join(beyond)}" if beyond else "imports from nothing of ours"
    width = max([*widths, _CHARACTER * len(says), 120]) + 2 * _MARGIN
    place: dict[str, tuple[float, float]] = {}
    y = top + 2 * _LINE + _GAP
    for row, row_width in zip(rows, widths, strict=True):
        x = left + (width - row_width) / 2
        for room in row:
            place[room] = (x, y)
            x += width_of[room] + _GAP
        y += _LEVEL
    height = y - _LEVEL + _BOX + _MARGIN - top
    parts = [
        _box(left, top, width, height, "frame"),
        _text(left + _MARGIN, top + _LINE, name.replace(".", "/"), "title"),
        _text(left + _MARGIN, top + 2 * _LINE - 3, says, "small"),
    ]
    for room, targets in inside.items():
        for target in sorted(targets):
            (x1, y1), (x2, y2) = place[room], place[target]
            parts.append(_arrow(x1 + width_of[room] / 2, y1 + _BOX, x2 + width_of[target] / 2, y2))
    for room, (x, y) in place.items():
        parts += [_box(x, y, width_of[room], _BOX), _text(x + 7, y + 17, label[room])]
    return parts, width, height


def _ordered(levels: dict[int, list[str]], arrows: Graph) -> dict[int, list[str]]:
    """Rooms of a row by the mean place of those above that import from them, so that few arrows cross."""
    ordered: dict[int, list[str]] = {}
    place: dict[str, float] = {}
    for level in sorted(levels, reverse=True):

        def above(room: str) -> float:
            places = [place[other] for other, targets in arrows.items() if room in targets and other in place]
            return sum(places) / len(places) if places else 0.5

        ordered[level] = sorted(levels[level], key=lambda room: (above(room), room))
        for i, room in enumerate(ordered[level]):
            place[room] = (i + 0.5) / len(ordered[level])
    return ordered


def draw_processes(modules: Graph) -> str:
    """A box a process, with the rooms that it loads, and what they say to each other."""
    rooms = rooms_of(modules)
    parts: list[str] = []
    x = float(_MARGIN)
    centre: dict[str, float] = {}
    boxes = []
    for process in PROCESSES:
        loaded = _folders(rooms[module] for module in reachable(modules, process.module))
        lines = [*process.says, "", "loads", *[f"\u2003{folder}" for folder in loaded]]
        boxes.append((process, lines))
    tall = max(len(lines) for _, lines in boxes) * _LINE + 2 * _LINE + 2 * _MARGIN
    top = float(_MARGIN) + _BOX + 2 * _LEVEL / 3
    for process, lines in boxes:
        width = max(len(each) for each in (*lines, process.title, process.command)) * _CHARACTER + 2 * _MARGIN
        parts.append(_box(x, top, width, tall, "frame"))
        parts.append(_text(x + _MARGIN, top + _LINE + 2, process.title, "title"))
        parts.append(_text(x + _MARGIN, top + 2 * _LINE, process.command, "small"))
        parts += [_text(x + _MARGIN, top + (3.5 + i) * _LINE, line) for i, line in enumerate(lines)]
        centre[process.module] = x + width / 2
        x += width + 2 * _GAP
    store_y = top + tall + 2 * _LEVEL / 3
    http, worker, offline, load = (centre[process.module] for process in PROCESSES)
    store = "model store: immutable versions on a disk"
    store_width = len(store) * _CHARACTER + 2 * _MARGIN
    store_x = (http + offline - store_width) / 2
    parts += [_box(store_x, store_y, store_width, _BOX), _text(store_x + _MARGIN, store_y + 17, store)]
    for begin, target in ((http, 0.1), (worker, 0.5), (offline, 0.9)):
        parts.append(_arrow(begin, top + tall, store_x + target * store_width, store_y))
    clients = "clients, browsers, Prometheus"
    client_width = len(clients) * _CHARACTER + 2 * _MARGIN
    client_x = max(float(_MARGIN), http - client_width / 2)
    parts += [_box(client_x, _MARGIN, client_width, _BOX), _text(client_x + _MARGIN, _MARGIN + 17, clients)]
    parts.append(_arrow(http, _MARGIN + _BOX, http, top))
    above = top - 16
    parts.append(f'<path class="message" d="M{http + 40:.0f} {top:.0f} V{above:.0f} H{worker:.0f} V{top:.0f}"/>')
    parts.append(_text((http + worker) / 2 - 60, above - 6, "frames of server/messages.py", "small"))
    parts.append(f'<path class="message" d="M{load:.0f} {top:.0f} V{_MARGIN + 12} H{client_x + client_width:.0f}"/>')
    parts.append(_text((offline + load) / 2, _MARGIN + 6, "HTTP", "small"))
    return _svg(x, store_y + _BOX + _MARGIN, "The processes and what they load", parts)


def _folders(rooms: Iterable[str]) -> list[str]:
    """Rooms by folder; of a folder that has others below it, the few of its modules that are loaded by name."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for room in rooms:
        path = Path(room.replace(".", "/"))
        if (ROOT / path).is_dir():
            by_folder[str(path)] = []
        elif str(path.parent) not in PACKAGES:
            by_folder[str(path.parent)].append(path.name)
    return [
        f"{folder}: {', '.join(sorted(names))}" if 0 < len(names) <= _FEW else folder
        for folder, names in sorted(by_folder.items())
    ]


def drawings() -> dict[Path, str]:
    """What each file should hold."""
    modules = module_graph()
    return {FOLDER / "processes.svg": draw_processes(modules), FOLDER / "rooms.svg": draw_rooms(room_graph(modules))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or say which of them do not show what the imports say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    options = parser.parse_args(arguments)
    wanted = drawings()
    if not options.check:
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} does not show what the imports say: run python -m docs.drawings")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
