"""The engine beside the libraries that people use today, on the CPU, in one run.

    python -m benchmarks.peers install --into FOLDER          an environment for each peer (or only those named)
    python -m benchmarks.peers run --environments FOLDER      measure what the results file lacks; can be resumed
    python -m benchmarks.peers table                          write the README's tables and the picture
    python -m benchmarks.peers table --check                  exit 1 if the README differs from the results

The peers are CTranslate2, OpenVINO (optimum-intel), ONNX Runtime (optimum-onnx), llama.cpp's T5 (built from source) and
transformers' own generate. All of them get the same random weights and the same tokens. The tokens of each are compared
with transformers' float32 tokens, and the lengths of all answers are checked.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.catalogue import DTYPES, ENGINE, INSTRUCTION_SETS, NAMED, NATIVE, SHAPE_TITLES
from benchmarks.peers.environments import ENVIRONMENTS, install

DEFAULT_CACHE = Path(tempfile.gettempdir(), "nash-peers")
UNFINISHED = 3  # exit code: the time was up


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description="The engine beside its peers.")
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("install", help="make the peers' environments")
    made.add_argument("environments", nargs="*", metavar="ENVIRONMENT", help=f"of {', '.join(ENVIRONMENTS)}")
    made.add_argument("--into", type=Path, required=True, metavar="FOLDER")
    ran = commands.add_parser("run", help="measure")
    ran.add_argument("--environments", type=Path, required=True, metavar="FOLDER", help="where install made them")
    ran.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="for models and logs; default: %(default)s")
    ran.add_argument("--shape", action="append", choices=SHAPE_TITLES, help="may be repeated; default: all")
    ran.add_argument("--dtype", action="append", choices=DTYPES, help="may be repeated; default: all")
    ran.add_argument("--batch", action="append", type=int, help="may be repeated; default: 1, 8 and 32")
    ran.add_argument("--peer", action="append", choices=NAMED, help="may be repeated; default: all")
    ran.add_argument("--engine-dtype", action="append", choices=DTYPES, help="may be repeated; default: all but int4")
    ran.add_argument("--threads", action="append", type=int, help="may be repeated; default: 1 and 2")
    ran.add_argument("--rounds", type=int, help="that are measured; default: 5 for T5-small, 3 for the others")
    ran.add_argument("--longest-s", type=float, default=10.0, help="whoever takes longer is measured once only")
    ran.add_argument("--stop-after-s", type=float, default=float("inf"), help=f"exit with {UNFINISHED} if work is left")
    ran.add_argument("--quick", action="store_true", help="one round of 8 tokens, to see that everybody runs")
    ran.add_argument("--instruction-set", choices=INSTRUCTION_SETS, default=NATIVE, help="force a lower one")
    ran.add_argument(
        "--out", type=Path, help="default: benchmarks/results/peers.json, or peers-SET.json; --quick: none"
    )
    shown = commands.add_parser("table", help="write the README's tables and the picture")
    shown.add_argument("--check", action="store_true", help="only look whether the tables say what the results say")
    return parser


def _install(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    unknown = [name for name in options.environments if name not in ENVIRONMENTS]
    if unknown:
        parser.error(f"no environment {unknown[0]!r}: there are {', '.join(ENVIRONMENTS)}")
    failed = install(options.into.resolve(), options.environments or ENVIRONMENTS)
    for name, reason in failed.items():
        print(f"{name} could not be installed: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if min([*(options.batch or [1]), *(options.threads or [1]), options.rounds or 1]) < 1:
        parser.error("--batch, --threads and --rounds are 1 or more")
    from benchmarks.peers.measure import Places, Plan, Results, Selection, run
    from benchmarks.peers.models import SHAPES
    from benchmarks.peers.report import FILES, RESULTS

    plan = Plan(instruction_set=options.instruction_set, threads=tuple(sorted(options.threads or (1, 2))))
    out = options.out
    if options.quick:
        plan = replace(plan, new_tokens=8)
        out = out or Path(tempfile.mkdtemp(), "peers.json")
    elif out is None:
        out = RESULTS / FILES[list(INSTRUCTION_SETS).index(options.instruction_set)]
    own = options.engine_dtype or [dtype for dtype in NAMED[ENGINE].dtypes if dtype != "int4"]
    peers = [NAMED[name] for name in NAMED if not options.peer or name in options.peer]
    selection = Selection(
        shapes=tuple(SHAPES[name] for name in SHAPES if not options.shape or name in options.shape),
        dtypes=tuple(dtype for dtype in DTYPES if not options.dtype or dtype in options.dtype),
        batches=tuple(options.batch or (1, 8, 32)),
        peers=tuple(replace(p, dtypes={d: d for d in own}) if p.name == ENGINE else p for p in peers),
        rounds=1 if options.quick else options.rounds,
        longest_s=options.longest_s,
        stop_after_s=options.stop_after_s,
    )
    try:
        results = Results(out, plan)
    except ValueError as error:
        parser.error(str(error))
    places = Places(environments=options.environments.resolve(), cache=options.cache.resolve())
    left = run(selection, places, plan, results, lambda line: print(line, flush=True))
    print(f"{out}: {f'{left} blocks are left' if left else 'complete'}")
    return UNFINISHED if left else 0


def _table(options: argparse.Namespace) -> int:
    from benchmarks.peers.report import PAGE, PICTURE, ROOT, SECTION, documents, draw, section
    from docs.marked import rewritten

    page = ROOT / PAGE
    text = page.read_text(encoding="utf-8")
    try:
        found = documents()
        wanted = rewritten(text, {SECTION: lambda: section(found)})
    except (FileNotFoundError, ValueError) as error:
        print(f"{PAGE}: {error}", file=sys.stderr)
        return 1
    if options.check:
        if wanted != text or not (ROOT / PICTURE).is_file():
            print(f"{PAGE} does not say what benchmarks/results say: run python -m benchmarks.peers table")
            return 1
        return 0
    page.write_text(wanted, encoding="utf-8")
    draw(found[0], ROOT / PICTURE)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "install":
        return _install(options, parser)
    return _run(options, parser) if options.command == "run" else _table(options)


if __name__ == "__main__":
    sys.exit(main())
