"""The results as Markdown and as a picture."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.catalogue import AGREES, DTYPES, ENGINE, NATIVE, PEERS, SHAPE_TITLES

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FILES = ("peers.json", "peers-avx2.json")
PAGE = "docs/performance.md"
PICTURE = "docs/peers.png"
SECTION = "peers"  # of the page, between its marks
CUT_OFF = 3  # in the picture
_TITLES = {peer.name: peer.title for peer in PEERS}

Document = Mapping[str, Any]


def documents() -> list[Document]:
    """The committed results, one for each instruction set that was measured.

    Raises:
        FileNotFoundError: there are none.
    """
    found = [RESULTS / name for name in FILES if (RESULTS / name).is_file()]
    if not found:
        raise FileNotFoundError(f"no {FILES[0]} in benchmarks/results: run python -m benchmarks.peers run")
    return [json.loads(file.read_text(encoding="utf-8")) for file in found]


def section(found: Sequence[Document]) -> str:
    """What stands in the page: a picture, and for each document its tables; the first shape's is unfolded."""
    parts = [f"![Whole answers of the engine and its peers]({Path(PICTURE).name})", ""]
    for document in found:
        for i, shape in enumerate(_shapes(document)):
            title = f"{SHAPE_TITLES[shape]}, {_instruction_set(document)}"
            body = shape_table(document, shape)
            if document is found[0] and i == 0:
                parts += [f"**{title}**", "", body, ""]
            else:
                parts += [f"<details><summary>{title}</summary>", "", body, "", "</details>", ""]
        parts += [ahead(document), "", *_remarks(document), ""]
    return "\n".join(parts)


def shape_table(document: Document, shape: str) -> str:
    """One line per peer and precision: first token / step / whole answer per batch; a dtype's fastest is bold."""
    blocks = [block for block in document["blocks"] if block["shape"] == shape]
    batches = sorted({block["batch"] for block in blocks})
    lines = [
        "| first token / step / whole answer, ms | " + " | ".join(f"batch {batch}" for batch in batches) + " |",
        "|---|" + "---|" * len(batches),
    ]
    for dtype in DTYPES:
        own = {block["batch"]: block["rows"] for block in blocks if block["dtype"] == dtype}
        for name in (peer.name for peer in PEERS):
            rows = {batch: row for batch, all_rows in own.items() for row in all_rows if row["peer"] == name}
            if not rows:
                continue
            precision = next(iter(rows.values()))["precision"]
            label = f"{_TITLES[name]}, {precision}" + ("" if precision == dtype else f" ({dtype})")
            cells = [_cell(rows.get(batch), own.get(batch, [])) for batch in batches]
            lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def _cell(row: Mapping[str, Any] | None, beside: Iterable[Mapping[str, Any]]) -> str:
    if row is None:
        return ""
    if "error" in row:
        return "did not run"
    fastest = min(each["total_ms"] for each in beside if "error" not in each)
    whole = f"{row['total_ms']:.0f}"
    whole = f"**{whole}**" if row["total_ms"] == fastest else whole
    threads = "" if row["threads"] == 1 else f" ({row['threads']}T)"
    return f"{row['first_ms']:.1f} / {row['step_ms']:.2f} / {whole}{threads}"


def ahead(document: Document) -> str:
    """The places where a peer is faster than the engine in the same dtype, in whole answers or in steps."""
    found, compared = [], 0
    for block in document["blocks"]:
        ran = {row["peer"]: row for row in block["rows"] if "error" not in row}
        ours = ran.pop(ENGINE, None)
        if ours is None:
            continue
        compared += len(ran)
        for name, row in ran.items():
            faster = [
                f"{what} {ours[figure] / row[figure]:.2f}x"
                for what, figure in (("whole answers", "total_ms"), ("steps", "step_ms"))
                if row[figure] < ours[figure]
            ]
            if faster:
                where = f"{SHAPE_TITLES[block['shape']]}, {block['dtype']}, batch {block['batch']}"
                found.append(f"{_TITLES[name]} ({where}: {', '.join(faster)})")
    text = "; ".join(found) if found else "nobody"
    return f"Faster than the engine in the same precision, of {compared} comparisons: {text}."


def _remarks(document: Document) -> list[str]:
    environment, plan = document["environment"], document["plan"]
    reasons: dict[tuple[str, str], list[str]] = {}
    doubtful = []
    for block in document["blocks"]:
        for row in block["rows"]:
            where = f"{SHAPE_TITLES[block['shape']]} in {block['dtype']}"
            if "error" in row:
                places = reasons.setdefault((row["peer"], row["error"]), [])
                places += [where] if where not in places else []
            elif block["dtype"] == "float32" and row["agreement"] < AGREES:
                doubtful.append(f"{_TITLES[row['peer']]} ({where}, batch {block['batch']}: {row['agreement']:.0%})")
    versions = dict.fromkeys(
        f"{_TITLES[name]} ({', '.join(f'{package} {number}' for package, number in packages.items())})"
        for name, packages in document["versions"].items()
        if name != ENGINE
    )
    threads = " or ".join(map(str, plan["threads"]))
    remarks = [
        f"Random weights, greedy, {plan['source_tokens']} tokens in and {plan['new_tokens']} out (lengths forced), "
        f"{environment['cores']} cores of an {environment['cpu']}, {_instruction_set(document)}; {threads} threads, "
        "whichever gives the faster answer (2T: two); medians of interleaved runs; commit "
        f"{', '.join(dict.fromkeys(block['commit'] for block in document['blocks']))}. {'; '.join(versions)}.",
    ]
    remarks += [f"{_TITLES[peer]} {text}." for peer, text in document["exempt"].items()]
    if doubtful:
        remarks.append(
            f"Of transformers' float32 tokens fewer than {AGREES:.0%} were repeated by {'; '.join(doubtful)}."
        )
    remarks += [
        f"{_TITLES[peer]} did not run {', '.join(places)}: `{error}`" for (peer, error), places in reasons.items()
    ]
    return [line for remark in remarks for line in (remark, "")][:-1]


def _instruction_set(document: Document) -> str:
    forced = document["plan"]["instruction_set"]
    return "all instruction sets" if forced == NATIVE else f"{forced.upper()} forced"


def _shapes(document: Document) -> list[str]:
    here = {block["shape"] for block in document["blocks"]}
    return [shape for shape in SHAPE_TITLES if shape in here]


def draw(document: Document, file: Path) -> None:
    """Draw whole answers as bars, with a panel for each shape and batch, float32 beside int8.

    A bar longer than CUT_OFF times its panel's median would leave no room for the others: it ends there, with a note.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shapes = _shapes(document)
    batches = sorted({block["batch"] for block in document["blocks"]})
    colours = {"float32": "#4c72b0", "int8": "#dd8452"}
    figure, panels = pyplot.subplots(
        len(shapes), len(batches), figsize=(3.3 * len(batches), 0.8 + 2.1 * len(shapes)), squeeze=False, sharey=True
    )
    names = [peer.name for peer in reversed(PEERS)]
    for i, shape in enumerate(shapes):
        for j, batch in enumerate(batches):
            panel = panels[i][j]
            took_ms = {
                dtype: {r["peer"]: r["total_ms"] for r in _rows(document, shape, dtype, batch) if "error" not in r}
                for dtype in colours
            }
            longest_ms = CUT_OFF * statistics.median(ms for its in took_ms.values() for ms in its.values())
            for k, (dtype, colour) in enumerate(colours.items()):
                its = took_ms[dtype]
                places = [names.index(name) + 0.2 - 0.4 * k for name in its]
                bars = panel.barh(places, [min(ms, longest_ms) for ms in its.values()], 0.38, color=colour, label=dtype)
                labels = [f"{ms:.0f}" + (" (cut off)" if ms > longest_ms else "") for ms in its.values()]
                panel.bar_label(bars, labels, fontsize=6, padding=1)
            panel.margins(x=0.25)
            panel.set_yticks(range(len(names)), [_TITLES[name] for name in names], fontsize=7)
            panel.tick_params(axis="x", labelsize=6)
            panel.set_title(f"{SHAPE_TITLES[shape]}, batch {batch}", fontsize=8)
            panel.spines[["top", "right"]].set_visible(False)
    panels[0][-1].legend(fontsize=7, frameon=False)
    plan, environment = document["plan"], document["environment"]
    figure.suptitle(
        f"Milliseconds for {plan['new_tokens']} tokens from {plan['source_tokens']} (less is better)\n"
        f"{environment['cores']} cores of an {environment['cpu']}, {_instruction_set(document)}",
        fontsize=9,
    )
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130, metadata={"Software": None})
    pyplot.close(figure)


def _rows(document: Document, shape: str, dtype: str, batch: int) -> list[dict[str, Any]]:
    wanted = (shape, dtype, batch)
    found = [b["rows"] for b in document["blocks"] if (b["shape"], b["dtype"], b["batch"]) == wanted]
    rows: list[dict[str, Any]] = found[0] if found else []
    return rows
