"""The native operator on ARM's sets of instructions: what its libraries consist of, and what they compute.

Emulated, they repeat what was recorded on x86.

Weights, caches and structures are the same on every set, so one recording serves all of them. The emulated processors
have what their set needs and, but for the newest, nothing more.
"""

import platform
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model_store.model.model import Model
from server.engine.backend import Feed
from server.engine.interface.config import EngineConfig
from server.engine.native.backend import NativeBackend
from server.engine.native.operator import library as native
from server.engine.native.operator.set_choice import VARIABLE, available_sets
from server.engine.native.operator.sets import SETS
from tests.engine.compact import ragged, write_compact
from tests.engine.conftest import ARM_COMPILER
from tests.engine.family_reference import backend_logits, load_backend, texts
from tests.engine.native.disassembly import EXPECTED, check, disassembled
from tests.engine.native.native_recording import Call, Recording
from tests.missing_programs import skip_or_fail
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import build_tiny_t5

emulated = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="only x86 emulates ARM here; ARM itself runs the operator's other tests"
)

EMULATOR = "qemu-aarch64-static"
PROCESSORS = {"neon": "cortex-a72", "neon-dotprod": "neoverse-n1", "neon-bf16": "max"}
DTYPES = ("float32", "bfloat16", "int8")
SOURCE_LENGTHS = [5, 33, 1, 17, 9, 2, 26]
STEPS = 10
ALONE = (1, 4)  # sequences that are also decoded by themselves

# In float32, of the largest logit.
TOLERANCE = 1e-5
# In the narrow dtypes, of how far they are from what is exact. Another order of sums, or another approximation's last
# bit, now and then decides which way a number is rounded to a cache (bfloat16) or to an activation's step (int8): sets
# that compute alike are much nearer to each other than to what is exact. A set that multiplies pairs of bfloat16 rounds
# activations and attention's weights as well, which x86's AVX2 does not: it need only be as near to what is exact.
ALIKE, AS_NEAR = 0.2, 2.0


def _compact_t5(directory: Path) -> Path:
    dense = build_tiny_t5(directory.parent / "dense", head_dim=24)
    return write_compact(dense, ragged(Model.open(dense).spec), directory)


MODELS: dict[str, Callable[[Path], Path]] = {
    "t5, heads of whole registers": partial(build_tiny_t5, head_dim=32, seed=5),
    "t5 v1.1, narrow heads": partial(build_tiny_t5, gated=True, tied=False, head_dim=4),
    "t5, compact": _compact_t5,
    "mt5": partial(build_tiny, CASES["mt5"]),
    "bart": partial(build_tiny, CASES["bart"]),
    "marian, odd width": partial(build_tiny, CASES["marian"]),
}


@dataclass(frozen=True)
class Passes:
    """Which calls of a recording are what, in one dtype."""

    targets: list[list[int]]  # the start token, then what was chosen
    ahead: int
    together: list[int]  # by step
    at_once: int  # all steps of all sequences in one pass
    alone: dict[int, list[int]]  # by sequence and step


@dataclass(frozen=True)
class Recorded:
    """A model's passes on x86 in every dtype, and the logits [sequence, step, vocabulary] of each in float64."""

    file: Path
    recording: Recording
    passes: dict[str, Passes]
    vocabulary: int
    exact: dict[str, Tensor]


def record(directory: Path, dtype: str, recording: Recording) -> Passes:
    spec = Model.open(directory).spec
    sources = texts(spec, SOURCE_LENGTHS)
    count = len(sources)
    config = EngineConfig(
        dtype=dtype,
        slots=count,
        max_source_tokens=40,
        max_new_tokens=STEPS,
        max_encode_tokens=count * STEPS,
        threads=2,
    )
    backend = NativeBackend.load(Model.open(directory), config)
    recording.add(backend)
    rows = list(range(count))
    backend.encode(sources, [[row] for row in rows])
    first = Feed(tokens=[spec.decoder_start_id] * count, positions=[0] * count, slots=rows, wanted=rows)
    steps = backend.decode_ahead(first, steps=STEPS, ends=(), seconds=600.0)
    ahead = len(recording.calls) - 1
    targets = [[spec.decoder_start_id, *(step.tokens[row] for step in steps[:-1])] for row in rows]

    together = []
    for i in range(STEPS):
        backend.decode(Feed(tokens=[t[i] for t in targets], positions=[i] * count, slots=rows, wanted=rows))
        together.append(len(recording.calls) - 1)

    every = [(row, i) for row in rows for i in range(STEPS)]
    backend.decode(
        Feed(
            tokens=[targets[row][i] for row, i in every],
            positions=[i for _, i in every],
            slots=[row for row, _ in every],
            wanted=[row * STEPS + STEPS - 1 for row in rows],
        )
    )
    at_once = len(recording.calls) - 1

    alone: dict[int, list[int]] = {}
    for sequence in ALONE:
        backend.encode([sources[sequence]], [[3]])
        alone[sequence] = []
        for i, token in enumerate(targets[sequence]):
            backend.decode(Feed(tokens=[token], positions=[i], slots=[3], wanted=[0]))
            alone[sequence].append(len(recording.calls) - 1)
    return Passes(targets, ahead, together, at_once, alone)


@pytest.fixture(scope="module")
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """One model's recording, made with AVX2."""
    if "avx2" not in available_sets():
        skip_or_fail("there is no operator for AVX2 here to record with")
    directory = MODELS[request.param](tmp_path_factory.mktemp("recorded") / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "avx2")
        library = native.library()
        assert library is not None
        recording = Recording(library)
        patch.setattr(native, "library", lambda: recording)
        passes = {dtype: record(directory, dtype, recording) for dtype in DTYPES}
    file = directory.parent / "recording"
    recording.write(file)
    spec = Model.open(directory).spec
    double = load_backend(directory, "float64", slots=len(SOURCE_LENGTHS))
    sources = texts(spec, SOURCE_LENGTHS)
    exact = {dtype: backend_logits(double, sources, passes[dtype].targets) for dtype in DTYPES}
    return Recorded(file, recording, passes, spec.target_vocab_size, exact)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, arm_libraries: dict[str, Path]) -> Path:
    """The program that repeats a recording, built for ARM."""
    del arm_libraries  # the compiler is there
    if shutil.which(EMULATOR) is None:
        skip_or_fail(f"{EMULATOR} is missing: install Debian's package qemu-user-static")
    program = tmp_path_factory.mktemp("driver") / "driver"
    source = Path(__file__).with_name("neon_driver.cpp")
    subprocess.run([ARM_COMPILER, "-std=c++20", "-O1", "-Wall", "-Wextra", source, "-o", program], check=True)
    return program


def emulate(driver: Path, processor: str, library: Path, recording: Path, results: Path) -> int:
    """The driver's exit status; what it says goes where the test's own output goes."""
    command = [
        EMULATOR,
        "-cpu",
        processor,
        "-L",
        "/usr/aarch64-linux-gnu",
        *map(str, (driver, library, recording, results)),
    ]
    return subprocess.run(command, check=False, timeout=300).returncode


def floats(call: Call, output: int = 0) -> Tensor:
    return torch.frombuffer(bytearray(call.results[output]), dtype=torch.float32)


def logits(calls: list[Call], numbers: list[int], vocabulary: int) -> Tensor:
    """[sequence, call, vocabulary] of passes with one row a sequence."""
    return torch.stack([floats(calls[number]).view(-1, vocabulary) for number in numbers], dim=1)


def check_near(ours: Tensor, theirs: Tensor, exact: Tensor, *, dtype: str, rounds_pairs: bool) -> None:
    assert ours.shape == theirs.shape == exact.shape
    if dtype == "float32":
        assert (ours - exact).abs().max() <= TOLERANCE * max(1.0, exact.abs().max().item())
    elif rounds_pairs:
        assert (ours - exact).norm() <= AS_NEAR * (theirs - exact).norm()
    else:
        assert (ours - theirs).norm() <= ALIKE * (theirs - exact).norm()


@pytest.mark.parametrize("name", [each.name for each in SETS if each.machine == "aarch64"])
def test_what_its_libraries_consist_of(name: str, arm_libraries: dict[str, Path]) -> None:
    check(disassembled(arm_libraries[name], "aarch64"), EXPECTED[name])


# An emulated processor takes seconds for a model: without the slow tests each model is on one set, each set with two.
SETS_OF_MODELS = [
    pytest.param(model, name, marks=() if i % len(PROCESSORS) == k else pytest.mark.slow)
    for i, model in enumerate(MODELS)
    for k, name in enumerate(PROCESSORS)
]


@emulated
@pytest.mark.parametrize(("recorded", "name"), SETS_OF_MODELS, indirect=["recorded"])
def test_arm_says_what_x86_and_float64_say(
    name: str, recorded: Recorded, driver: Path, arm_libraries: dict[str, Path], tmp_path: Path
) -> None:
    assert emulate(driver, PROCESSORS[name], arm_libraries[name], recorded.file, tmp_path / "results") == 0
    theirs, ours = recorded.recording.calls, recorded.recording.read_results(tmp_path / "results")
    for dtype, passes in recorded.passes.items():
        together = logits(ours, passes.together, recorded.vocabulary)
        on_x86 = logits(theirs, passes.together, recorded.vocabulary)
        check_near(together, on_x86, recorded.exact[dtype], dtype=dtype, rounds_pairs=name == "neon-bf16")

        # A row is the same in any company, to the last bit.
        assert torch.equal(floats(ours[passes.at_once]).view(-1, recorded.vocabulary), together[:, -1])
        for sequence, numbers in passes.alone.items():
            assert torch.equal(logits(ours, numbers, recorded.vocabulary)[0], together[sequence])

        # Steps ahead choose the highest of those logits, as long as they have read what x86 chose.
        call = ours[passes.ahead]
        assert call.answer == STEPS
        chosen = torch.frombuffer(bytearray(call.results[0]), dtype=torch.int64).view(STEPS, -1)
        max_logits = floats(call, 1).view(STEPS, -1)
        compared = 0
        for row, target in enumerate(passes.targets):
            for i in range(STEPS):
                if chosen[:i, row].tolist() != target[1 : i + 1]:
                    break
                best = together[row, i].max()
                assert max_logits[i, row] == best
                assert together[row, i, chosen[i, row]] == best
                compared += 1
        # Where pairs are rounded, other tokens are soon chosen in the narrow dtypes; what follows them is not compared.
        assert compared >= (0.5 if name == "neon-bf16" else 0.9) * len(passes.targets) * STEPS


@emulated
@pytest.mark.parametrize("recorded", [next(iter(MODELS))], indirect=True)
@pytest.mark.parametrize(
    ("name", "processor"), [("neon-dotprod", "cortex-a72"), ("neon-bf16", "cortex-a72"), ("neon-bf16", "neoverse-n1")]
)
def test_an_older_processor_has_no_such_instructions(
    name: str, processor: str, recorded: Recorded, driver: Path, arm_libraries: dict[str, Path], tmp_path: Path
) -> None:
    """So the set that runs on it needs none of them."""
    status = emulate(driver, processor, arm_libraries[name], recorded.file, tmp_path / "results")
    assert status == -signal.SIGILL
