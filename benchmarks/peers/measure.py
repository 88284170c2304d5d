"""Measure all peers in one run, in blocks of a shape, a dtype and a batch in which the contenders take turns.

A contender is a peer with a number of threads. All contenders of a block stay loaded while it runs; one process serves
all thread counts of a peer. The first turn warms up, checks the answers and drops a thread count that is far slower.
The other turns are measured, and a figure is the median over them.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.peers.catalogue import NAMED, NATIVE, PEERS, REFERENCE, Peer, variables
from benchmarks.peers.models import Shape, model_folder
from benchmarks.peers.protocol import PeerError, Process

SETTLE_S = 0.4  # the previous contender's threads may spin for 0.2 s, waiting for work
FAR_BEHIND = 1.25  # times as long as the peer's other thread count
FIGURES = ("first_ms", "step_ms", "total_ms")

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure; figures of equal plans may be in one file."""

    instruction_set: str = NATIVE
    threads: tuple[int, ...] = (1, 2)
    source_tokens: int = 64
    new_tokens: int = 64
    settle_s: float = SETTLE_S


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders."""

    environments: Path
    cache: Path  # models, the files that the peers made from them, and logs


@dataclass(frozen=True)
class Contender:
    """A loaded peer with a number of threads."""

    peer: Peer
    threads: int
    process: Process


def prefix_share(made: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """The share of tokens before the first difference, over all answers."""
    same = 0
    for ours, theirs in zip(made, wanted, strict=True):
        pairs = zip(ours, theirs, strict=False)
        same += next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    return same / sum(map(len, wanted))


def check_lengths(made: Sequence[Sequence[int]], batch: int, new_tokens: int) -> None:
    """Check the lengths: a peer that makes fewer tokens would look fast.

    Raises:
        PeerError: the number or the length of the answers is not the requested one.
    """
    lengths = sorted({len(tokens) for tokens in made})
    if len(made) != batch or lengths != [new_tokens]:
        raise PeerError(f"made {len(made)} answers of {lengths} tokens where {batch} of {new_tokens} were asked for")


def references(shape: Shape, places: Places, plan: Plan, batch: int) -> list[list[int]]:
    """transformers' float32 tokens for the first `batch` sources; made once and kept beside the model."""
    file = places.cache / shape.name / f"tokens-{plan.source_tokens}-{plan.new_tokens}.json"
    known: list[list[int]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    if len(known) < batch:
        peer = NAMED[REFERENCE]
        threads = max(plan.threads)
        with Process(peer.module, log=_log(places, peer), variables=variables(NATIVE)) as process:
            arguments = {"model": str(model_folder(shape, places.cache)), "made": "", "dtype": "float32"}
            process.ask("load", threads=threads, timeout_s=300, **arguments)
            sources = shape.sources(batch, plan.source_tokens)
            run = {"threads": threads, "sources": sources, "new_tokens": plan.new_tokens}
            known = process.ask("run", timeout_s=600, **run)["tokens"]
        file.write_text(json.dumps(known), encoding="utf-8")
    return known[:batch]


def _log(places: Places, peer: Peer) -> Path:
    return places.cache / "logs" / f"{peer.name}.log"


def open_contenders(
    peer: Peer, shape: Shape, dtype: str, places: Places, plan: Plan, stack: ExitStack
) -> tuple[list[Contender], dict[str, str]]:
    """A peer loaded once per number of threads, and its versions; its files are made if they are missing.

    Raises:
        PeerError: the peer is not installed, or cannot be prepared or loaded.
    """
    python = peer.python(places.environments, plan.instruction_set)
    made = places.cache / shape.name / peer.name / dtype
    arguments = {"model": str(model_folder(shape, places.cache)), "made": str(made), "dtype": dtype}
    start = partial(
        Process, peer.module, log=_log(places, peer), python=python, variables=variables(plan.instruction_set)
    )
    if not made.is_dir():  # in a separate process, because conversion does not free all its memory
        with start() as process:
            process.ask("prepare", timeout_s=900, **arguments)
    process = stack.enter_context(start())
    for threads in plan.threads:
        versions = process.ask("load", threads=threads, timeout_s=300, **arguments)["versions"]
    return [Contender(peer, threads, process) for threads in plan.threads], versions


class Turns:
    """The contenders of one block, taking turns."""

    def __init__(
        self, contenders: Iterable[Contender], dtype: str, sources: list[list[int]], wanted: list[list[int]], plan: Plan
    ) -> None:
        """`wanted` are the reference's tokens for `sources`."""
        self._racing = list(contenders)
        self._dtype, self._sources, self._wanted, self._plan = dtype, sources, wanted, plan
        self._runs: dict[tuple[str, int], list[dict[str, float]]] = {}
        self._agreement: dict[tuple[str, int], float] = {}
        self._warm_ms: dict[tuple[str, int], float] = {}
        self._errors: dict[tuple[str, int], str] = {}
        self._entered = list(self._racing)

    def run(self, rounds: int, longest_s: float) -> list[dict[str, Any]]:
        """One row per peer. A contender that takes longer than `longest_s` is measured only once."""
        for contender in self._racing:
            answer = self._turn(contender)
            if answer is not None:
                self._warm_ms[_key(contender)] = answer["total_ms"]
                self._agreement[_key(contender)] = prefix_share(answer["tokens"], self._wanted)
        self._racing = list(self._worth_measuring())
        for turn in range(rounds):
            for contender in self._racing:
                if turn > 0 and self._warm_ms[_key(contender)] > 1e3 * longest_s:
                    continue
                answer = self._turn(contender)
                if answer is not None:
                    own = self._runs.setdefault(_key(contender), [])
                    own.append({figure: answer[figure] for figure in FIGURES})
        return [self._row(peer) for peer in dict.fromkeys(contender.peer.name for contender in self._entered)]

    def _turn(self, contender: Contender) -> dict[str, Any] | None:
        if _key(contender) in self._errors:
            return None
        time.sleep(self._plan.settle_s)
        try:
            answer = contender.process.ask(
                "run",
                threads=contender.threads,
                sources=self._sources,
                new_tokens=self._plan.new_tokens,
                timeout_s=600,
            )
            check_lengths(answer["tokens"], len(self._sources), self._plan.new_tokens)
        except PeerError as error:
            self._errors[_key(contender)] = str(error)
            return None
        return answer

    def _worth_measuring(self) -> Iterator[Contender]:
        for contender in self._racing:
            own = self._warm_ms.get(_key(contender))
            others = [ms for (name, _), ms in self._warm_ms.items() if name == contender.peer.name]
            if own is not None and own <= FAR_BEHIND * min(others):
                yield contender

    def _row(self, name: str) -> dict[str, Any]:
        """The row of a peer, at the number of threads with the fastest whole answers."""
        entered = [contender for contender in self._entered if contender.peer.name == name]
        finished = {c.threads: self._runs[_key(c)] for c in entered if _key(c) in self._runs}
        finished = {threads: runs for threads, runs in finished.items() if (name, threads) not in self._errors}
        head = {"peer": name, "precision": entered[0].peer.dtypes[self._dtype]}
        if not finished:
            return {**head, "error": next(self._errors[_key(c)] for c in entered if _key(c) in self._errors)}
        medians = {threads: {f: _median(runs, f) for f in FIGURES} for threads, runs in finished.items()}
        best = min(medians, key=lambda threads: medians[threads]["total_ms"])
        others = {
            str(c.threads): medians.get(c.threads, {}).get("total_ms", self._warm_ms[_key(c)])
            for c in entered
            if c.threads != best and _key(c) in self._warm_ms
        }
        return {
            **head,
            "threads": best,
            "rounds": len(finished[best]),
            **medians[best],
            "total_ms_rounds": [round(run["total_ms"], 3) for run in finished[best]],
            "other_threads_total_ms": others,
            "agreement": round(self._agreement[name, best], 4),
        }


def _key(contender: Contender) -> tuple[str, int]:
    return contender.peer.name, contender.threads


def _median(runs: Sequence[Mapping[str, float]], figure: str) -> float:
    return round(statistics.median(run[figure] for run in runs), 3)


class Results:
    """The results file: it is written after every block, and a later run resumes from it."""

    def __init__(self, file: Path, plan: Plan) -> None:
        """Read the existing file, if any.

        Raises:
            ValueError: it was measured with another plan or on another processor.
        """
        self._file = file
        head = {"environment": environment(), "plan": json.loads(json.dumps(asdict(plan)))}
        forced = plan.instruction_set != NATIVE
        spared = {peer.name: peer.exempt for peer in PEERS if forced and peer.exempt}
        self.document: dict[str, Any] = {**head, "exempt": spared, "versions": {}, "blocks": []}
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            for what, ours, theirs in (
                ("plan", head["plan"], found["plan"]),
                ("processor", head["environment"]["cpu"], found["environment"]["cpu"]),
            ):
                if ours != theirs:
                    raise ValueError(f"{file} has another {what}, {theirs}: give another --out, or remove it")
            self.document = found

    def is_done(self, shape: str, dtype: str, batch: int, peers: Iterable[str]) -> bool:
        """Whether the file has the block with all these peers."""
        block = self._block(shape, dtype, batch)
        return block is not None and {row["peer"] for row in block["rows"]} >= set(peers)

    def _block(self, shape: str, dtype: str, batch: int) -> dict[str, Any] | None:
        wanted = (shape, dtype, batch)
        blocks: list[dict[str, Any]] = self.document["blocks"]
        return next((b for b in blocks if (b["shape"], b["dtype"], b["batch"]) == wanted), None)

    def add(
        self, shape: str, dtype: str, batch: int, rows: list[dict[str, Any]], versions: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Add a block, replacing an earlier one, and write the file through a sibling."""
        here = environment()
        block = {"shape": shape, "dtype": dtype, "batch": batch, "commit": here["commit"], "date": here["date"]}
        earlier = self._block(shape, dtype, batch)
        if earlier is not None:
            self.document["blocks"].remove(earlier)
        self.document["blocks"].append({**block, "rows": rows})
        self.document["versions"].update(versions)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        sibling = self._file.with_name(f"{self._file.name}.partial")  # renamed, so an interrupt leaves a whole file
        sibling.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        sibling.replace(self._file)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The part of the benchmark to run."""

    shapes: tuple[Shape, ...]
    dtypes: tuple[str, ...]
    batches: tuple[int, ...]
    peers: tuple[Peer, ...]
    rounds: int | None = None  # None: by the shape
    longest_s: float = 10.0
    stop_after_s: float = float("inf")


def rounds_of(shape: Shape) -> int:
    """The shape's number of rounds: the full number for all shapes would take hours."""
    return 5 if shape.name == "t5-small" else 3


def run(selection: Selection, places: Places, plan: Plan, results: Results, report: Report) -> int:
    """Measure what is missing; return how many blocks are left when the time is up."""
    started_s = time.monotonic()
    left = 0
    for shape in selection.shapes:
        for dtype in selection.dtypes:
            peers = [peer for peer in selection.peers if dtype in peer.dtypes]
            names = [peer.name for peer in peers]
            batches = [b for b in selection.batches if peers and not results.is_done(shape.name, dtype, b, names)]
            if not batches:
                continue
            if time.monotonic() - started_s > selection.stop_after_s:
                left += len(batches)
                continue
            with ExitStack() as stack:
                contenders, failed, versions = _open_all(peers, shape, dtype, places, plan, stack, report)
                for batch in batches:
                    if time.monotonic() - started_s > selection.stop_after_s:
                        left += 1
                        continue
                    wanted = references(shape, places, plan, batch)
                    sources = shape.sources(batch, plan.source_tokens)
                    begun_s = time.monotonic()
                    rows = Turns(contenders, dtype, sources, wanted, plan).run(
                        selection.rounds or rounds_of(shape), selection.longest_s
                    )
                    results.add(shape.name, dtype, batch, _in_order(rows + failed, names), versions)
                    report(f"{shape.name}, {dtype}, batch {batch}: {time.monotonic() - begun_s:.0f} s")
                    for row in _in_order(rows + failed, names):
                        report(f"  {described(row)}")
    return left


def _open_all(
    peers: Iterable[Peer], shape: Shape, dtype: str, places: Places, plan: Plan, stack: ExitStack, report: Report
) -> tuple[list[Contender], list[dict[str, Any]], dict[str, dict[str, str]]]:
    """All peers of a block, a row for each one that cannot be opened, and the versions."""
    model_folder(shape, places.cache)
    contenders: list[Contender] = []
    failed: list[dict[str, Any]] = []
    versions: dict[str, dict[str, str]] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        opening = [(p, pool.submit(open_contenders, p, shape, dtype, places, plan, stack)) for p in peers]
        for peer, future in opening:
            try:
                own, versions[peer.name] = future.result()
                contenders += own
                report(f"{shape.name}, {dtype}: {peer.title} is ready")
            except PeerError as error:
                report(f"{shape.name}, {dtype}: {peer.title} is out: {error}")
                failed.append({"peer": peer.name, "precision": peer.dtypes[dtype], "error": str(error)})
    return contenders, failed, versions


def _in_order(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: names.index(row["peer"]))


def described(row: Mapping[str, Any]) -> str:
    """A row of a block as one line."""
    head = f"{row['peer']:<13}{row['precision']:<22}"
    if "error" in row:
        return f"{head}{row['error']}"
    return (
        f"{head}{row['threads']} thread{'s' if row['threads'] > 1 else ' '}{row['first_ms']:>10.2f} first"
        f"{row['step_ms']:>9.3f} step{row['total_ms']:>10.1f} whole  agrees {row['agreement']:.2f}"
    )
