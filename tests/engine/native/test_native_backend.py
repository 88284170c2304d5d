"""The native operator against PyTorch in float64, and against itself in other company."""

import gc
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from server.engine import source_queue
from server.engine.backend import Feed
from server.engine.engine import Engine
from server.engine.errors import LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.native.arena import Arena
from server.engine.native.backend import NativeBackend
from server.engine.native.operator import library as native
from server.engine.pytorch.backend import TorchBackend
from server.engine.sequence import Sequence, Status
from server.engine.source_queue import LONGEST_PAUSE_S, SourceQueue
from tests.engine.compact import hollow, ragged, shortened, write_compact
from tests.engine.reference import random_sources

pytestmark = pytest.mark.usefixtures("instruction_set")

SOURCES = random_sources(7, longest=37)
TARGETS = [[0, *s][:21] for s in random_sources(60, longest=60, seed=1) if len(s) >= 20][:7]
CONFIG = EngineConfig(slots=7, max_source_tokens=37, max_new_tokens=24, max_encode_tokens=64, threads=2)
DTYPES = ("float32", "bfloat16", "int8")


def load(directory: Path, dtype: str = "float32", **changes: Any) -> NativeBackend:
    return NativeBackend.load(Model.open(directory), replace(CONFIG, dtype=dtype, **changes))


def step(backend: NativeBackend | TorchBackend, position: int, slots: list[int], tokens: list[int]) -> Tensor:
    rows = list(range(len(slots)))
    return backend.decode(Feed(tokens=tokens, positions=[position] * len(slots), slots=slots, wanted=rows)).clone()


def all_logits(backend: NativeBackend | TorchBackend) -> Tensor:
    """[sequences, steps, vocabulary], teacher-forced, all sequences side by side."""
    count = len(SOURCES)
    backend.encode(SOURCES, [[slot] for slot in range(count)])
    tokens = zip(*TARGETS, strict=True)
    return torch.stack([step(backend, i, list(range(count)), list(each)) for i, each in enumerate(tokens)], dim=1)


def exact_logits(directory: Path) -> Tensor:
    return all_logits(TorchBackend.load(Model.open(directory), CONFIG, torch.float64))


@pytest.fixture(scope="module")
def dense(dense_dir: Path) -> tuple[Path, Tensor]:
    """A dense model and its exact logits, which all sets share."""
    return dense_dir, exact_logits(dense_dir)


@pytest.fixture(
    scope="module", params=[None, ragged, shortened, hollow], ids=lambda cut: cut.__name__ if cut else "dense"
)
def cut_or_whole(
    request: pytest.FixtureRequest, dense: tuple[Path, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Tensor]:
    """A model of every kind and its exact logits."""
    if request.param is None:
        return dense
    cut: Callable[[ModelSpec], ModelSpec] = request.param
    directory = write_compact(dense[0], cut(Model.open(dense[0]).spec), tmp_path_factory.mktemp("cut") / "model")
    return directory, exact_logits(directory)


def test_logits_are_those_of_float64(cut_or_whole: tuple[Path, Tensor]) -> None:
    directory, expected = cut_or_whole
    for threads in (1, 2):
        difference = (all_logits(load(directory, threads=threads)) - expected).abs().max().item()
        assert difference <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.fixture(scope="module")
def pytorch_s_error(dense: tuple[Path, Tensor]) -> float:
    """How far bfloat16 takes PyTorch from what is exact."""
    directory, expected = dense
    theirs = TorchBackend.load(Model.open(directory), CONFIG, torch.bfloat16)
    return float((all_logits(theirs) - expected).norm())


def test_narrow_numbers_stay_near(dense: tuple[Path, Tensor], pytorch_s_error: float) -> None:
    directory, expected = dense
    coarse, coarser = (all_logits(load(directory, dtype)) - expected for dtype in ("bfloat16", "int8"))
    assert 0 < coarse.norm() < pytorch_s_error  # sums and residuals are kept in float32 here
    assert 0 < coarser.norm() < 5 * coarse.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_alone_and_in_any_company(t5_dir: Path, dtype: str) -> None:
    together = all_logits(load(t5_dir, dtype))
    alone = load(t5_dir, dtype, threads=1)
    for i, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        alone.encode([source], [[3]])
        for position, token in enumerate(target):
            assert torch.equal(step(alone, position, [3], [token])[0], together[i, position])


def test_rows_are_divided_where_pairs_of_bfloat16_stand_together(t5_dir: Path) -> None:
    """More threads than tiles divide rows in blocks of eight; a pair across two blocks is the first one's."""
    alone, divided = (load(t5_dir, "bfloat16", threads=threads) for threads in (1, 3))
    divided.hold_threads(3)
    for length in range(1, 26):
        sources = [[5], [(7 * i) % 40 + 3 for i in range(length)]]
        for backend in (alone, divided):
            backend.encode(sources, [[0], [1]])
        assert divided.active_threads() == 3
        assert torch.equal(step(divided, 0, [0, 1], [0, 0]), step(alone, 0, [0, 1], [0, 0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_tokens_of_a_sequence_in_one_step(t5_dir: Path, dtype: str) -> None:
    expected, backend = all_logits(load(t5_dir, dtype)), load(t5_dir, dtype)
    backend.encode(SOURCES, [[slot] for slot in range(len(SOURCES))])
    lengths = [5, 1, 21, 3, 8, 2, 13]
    rows = [(slot, position) for slot, length in enumerate(lengths) for position in range(length)]
    last = [sum(lengths[: slot + 1]) - 1 for slot in range(len(lengths))]
    feed = Feed(
        tokens=[TARGETS[slot][position] for slot, position in rows],
        positions=[position for _, position in rows],
        slots=[slot for slot, _ in rows],
        wanted=last,
    )
    got = backend.decode(feed)
    assert len(rows) < backend._rows.capacity
    for slot, length in enumerate(lengths):
        assert torch.equal(got[slot], expected[slot, length - 1])


def a_block_more(backend: NativeBackend) -> bool:
    """Go on with a source by the fewest rows, as where nothing is known of how long they take."""
    assert backend._progress is not None
    backend._progress.row_seconds = native.RowSeconds()
    return backend.go_on(0.0)


def test_a_source_does_not_wait_for_ever(t5_dir: Path) -> None:
    backend = load(t5_dir)
    backend.begin_source(SOURCES[0], [0])
    calls = 1
    while not backend.go_on(0.0):
        calls += 1
        assert calls < 1000
    assert calls > 16, "no call had time for a block, and some did one"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_source_in_slices_is_the_same_to_the_bit(t5_dir: Path, dtype: str) -> None:
    expected, backend = all_logits(load(t5_dir, dtype)), load(t5_dir, dtype)
    long = max(range(len(SOURCES)), key=lambda i: len(SOURCES[i]))
    short, given_up = [i for i in range(3) if i != long][:2]
    backend.encode([SOURCES[short]], [[0]])
    backend.begin_source(SOURCES[given_up], [1])
    assert not a_block_more(backend)
    backend.drop_source()
    backend.begin_source(SOURCES[long], [1, 4])
    position, slices = 0, 0
    while not a_block_more(backend):
        got = step(backend, position, [0], [TARGETS[short][position]])
        assert torch.equal(got[0], expected[short, position])
        position, slices = (position + 1) % 8, slices + 1
        if slices == 2:
            backend.move(1, 2, source_length=len(SOURCES[long]), length=0)
        if slices == 3:
            backend.encode([SOURCES[given_up]], [[3]])
    assert slices > 4
    for position in range(8):
        got = step(backend, position, [2, 3, 4], [TARGETS[i][position] for i in (long, given_up, long)])
        assert torch.equal(got, expected[[long, given_up, long], position])


def test_more_rows_than_a_pass_holds(t5_dir: Path) -> None:
    small = load(t5_dir, max_encode_tokens=1, max_source_tokens=37)
    assert small._rows.capacity == 37 < 7 * 21
    small.encode(SOURCES, [[slot] for slot in range(7)])
    rows = [(slot, position) for slot in range(7) for position in range(21)]
    got = small.decode(
        Feed(
            tokens=[TARGETS[slot][position] for slot, position in rows],
            positions=[position for _, position in rows],
            slots=[slot for slot, _ in rows],
            wanted=[21 * slot + 20 for slot in range(7)],
        )
    )
    assert torch.equal(got, all_logits(load(t5_dir))[:, 20])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_beams_share_a_source_and_take_over_each_others_state(t5_dir: Path, dtype: str) -> None:
    beams = load(t5_dir, dtype)
    beams.encode([SOURCES[0], SOURCES[1]], [[0, 2, 1, 4], [3]])
    histories: dict[int, list[int]] = {slot: [] for slot in range(5)}
    for position in range(18):
        tokens = [TARGETS[slot][position] for slot in range(5)]
        logits = step(beams, position, list(range(5)), tokens)
        for slot, token in enumerate(tokens):
            histories[slot].append(token)
        for slot in (0, 1, 2, 4):
            plain = load(t5_dir, dtype) if position in (0, 1, 15, 16, 17) else None
            if plain is not None:
                plain.encode([SOURCES[0]], [[0]])
                again = [step(plain, i, [0], [token]) for i, token in enumerate(histories[slot])]
                assert torch.equal(again[-1][0], logits[slot])
        origins = [[2, 2, 0, 0], [0, 1, 2, 4], [4, 4, 4, 4], [1, 0, 4, 2]][position % 4]
        targets = [0, 1, 2, 4]
        beams.reorder(targets, origins, position + 1)
        before = dict(histories)
        for target, origin in zip(targets, origins, strict=True):
            histories[target] = list(before[origin])


def test_a_move_takes_everything_along(t5_dir: Path) -> None:
    expected, backend = all_logits(load(t5_dir)), load(t5_dir)
    backend.encode(SOURCES[:4], [[0], [1], [2], [3]])
    for position in range(3):
        step(backend, position, [0, 1, 2, 3], [TARGETS[i][position] for i in range(4)])
    backend.move(3, 1, source_length=len(SOURCES[3]), length=3)  # 1 has ended
    backend.encode([SOURCES[4]], [[3]])  # somebody new where 3 was
    for position in range(3, 6):
        got = step(backend, position, [0, 1, 2], [TARGETS[i][position] for i in (0, 3, 2)])
        assert torch.equal(got, expected[[0, 3, 2], position])
        new = step(backend, position - 3, [3], [TARGETS[4][position - 3]])
        assert torch.equal(new[0], expected[4, position - 3])


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_the_source_of_samples_outlives_each_of_them(t5_dir: Path, ended: int) -> None:
    expected, backend = all_logits(load(t5_dir)), load(t5_dir)
    backend.encode([SOURCES[0], SOURCES[1]], [[0, 1, 2], [3]])
    for position in range(3):
        step(backend, position, [0, 1, 2, 3], [TARGETS[i][position] for i in (0, 0, 0, 1)])
    left = [slot for slot in range(3) if slot != ended]
    backend.encode([SOURCES[2]], [[ended]])
    for position in range(3, 6):
        got = step(backend, position, [*left, 3], [TARGETS[i][position] for i in (0, 0, 1)])
        assert torch.equal(got, expected[[0, 0, 1], position])
        new = step(backend, position - 3, [ended], [TARGETS[2][position - 3]])
        assert torch.equal(new[0], expected[2, position - 3])
    # One of them moves to where a part of another group was, and a group takes what is left.
    backend.encode([SOURCES[3]], [[3]])
    backend.move(3, left[0], source_length=len(SOURCES[3]), length=0)
    backend.encode([SOURCES[4], SOURCES[5]], [[3, 4], [5, 6]])
    slots = [left[0], left[1], ended, 3, 4, 5, 6]
    sources, positions = (3, 0, 2, 4, 4, 5, 5), (0, 6, 3, 0, 0, 0, 0)
    tokens = [TARGETS[i][position] for i, position in zip(sources, positions, strict=True)]
    got = backend.decode(Feed(tokens=tokens, positions=list(positions), slots=slots, wanted=list(range(7))))
    assert torch.equal(got, expected[list(sources), list(positions)])


@pytest.mark.parametrize(("dtype", "pause_s"), [("float32", 0.0), ("int8", LONGEST_PAUSE_S)])
def test_answers_of_every_kind_are_the_same_alone_and_in_random_traffic(
    t5_dir: Path, dtype: str, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_queue, "LONGEST_PAUSE_S", pause_s)  # 0: every source beside others comes in slices
    # So that a slice is the fewest rows, now and then.
    monkeypatch.setattr(SourceQueue, "_share_s", lambda queue, step_s: 1e-9 * step_s)
    plain = GenerationParameters(max_new_tokens=16)
    kinds = [
        plain,
        replace(plain, max_new_tokens=2),
        replace(plain, do_sample=True, temperature=2.0, seed=2, num_return_sequences=4),
        replace(plain, num_beams=3, num_return_sequences=2),
        replace(plain, max_new_tokens=12, prefix_ids=(5, 6, 7)),
    ]
    config = replace(CONFIG, dtype=dtype, threads=1)
    engine, solo = (Engine.load(Model.open(t5_dir), replace(config, ahead_s=ahead_s)) for ahead_s in (60.0, 0.0))
    chance, alive, several, ahead, sliced = random.Random(0), [], 0, 0, 0

    def step() -> None:
        nonlocal ahead, sliced
        engine.step()
        ahead += engine.step_stats.steps > 1
        sliced += bool(engine._sources)

    for number in range(60):
        parameters = kinds[chance.randrange(len(kinds))]
        alive.append(Sequence(id=number, source_ids=chance.choice(SOURCES), parameters=parameters))
        engine.add(alive[-1])
        for _ in range(chance.randrange(6)):
            step()
        if chance.random() < 0.1:
            engine.cancel(number)
    while not engine.idle:
        step()
    for one in [one for one in alive if one.status is not Status.CANCELLED]:
        (expected,) = solo.generate([one.source_ids], one.parameters)
        assert [each.tokens for each in one.hypotheses] == [each.tokens for each in expected.hypotheses]
        several += len({len(each.tokens) for each in one.hypotheses}) > 1
    assert several > 5, "samples of one source end at different times"
    assert ahead > 5 or pause_s == 0, "nobody looked at each step"
    assert (sliced > 5) == (pause_s == 0), "sources were under way between steps"


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_with_its_row(t5_dir: Path, dtype: str, tmp_path: Path) -> None:
    directory = tmp_path / "poisoned"
    directory.mkdir()
    (directory / "config.json").write_text((t5_dir / "config.json").read_text())
    tensors = load_file(t5_dir / "model.safetensors")
    poison = 5
    tensors["lm_head.weight"] = tensors["shared.weight"].clone()
    tensors["shared.weight"][poison] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    clean, sources = ([[6 if t == poison else t for t in each] for each in texts] for texts in (TARGETS, SOURCES))
    backend = load(directory, dtype)
    backend.encode(sources[:2], [[0], [1]])
    for position in range(6):  # NaN at every parity of position in slot 1
        logits = step(backend, position, [0, 1], [clean[0][position], poison])
        assert logits[0].isfinite().all()
        assert logits[1].isnan().any()
    backend.encode([sources[2]], [[1]])
    fresh = load(directory, dtype)
    fresh.encode([sources[2]], [[1]])
    for position in range(6):
        logits = step(backend, position, [1], [clean[2][position]])
        assert logits.isfinite().all()
        assert torch.equal(logits, step(fresh, position, [1], [clean[2][position]]))


def test_int8_weights_are_rounded_to_the_nearest_step_of_their_output() -> None:
    library = native.library()
    assert library is not None
    torch.manual_seed(0)
    weight_OI = torch.randn(37, 23) * torch.rand(37, 1)
    weight_OI[4] = 0
    lanes, depth, arena = 64, 24, Arena()
    packed = arena.take(library.packed_bytes(37, 23, native.INT8), torch.int8)
    scales, offsets = arena.take(lanes, torch.float32), arena.take(lanes, torch.int32)
    library.pack(weight_OI.data_ptr(), 37, 23, native.INT8, packed.data_ptr(), scales.data_ptr(), offsets.data_ptr())
    steps_OI = packed.view(lanes // 32, depth // 4, 32, 4).permute(0, 2, 1, 3).reshape(lanes, depth).int()
    expected_O = weight_OI.abs().amax(1) / 127
    torch.testing.assert_close(scales[:37], expected_O)
    assert (steps_OI[:37, :23] * scales[:37, None] - weight_OI).abs().max() <= expected_O.max() / 2 * 1.001
    assert not steps_OI[37:].any()
    assert not steps_OI[:, 23:].any()
    assert torch.equal(offsets, -128 * steps_OI.sum(1).int())
    assert scales[4] == 0
    assert not steps_OI[4].any()


def test_models_side_by_side_in_threads_of_their_own(t5_dir: Path) -> None:
    expected, results = all_logits(load(t5_dir)), {}

    def run(name: int) -> None:
        backend = load(t5_dir)
        for _ in range(3):
            results[name] = all_logits(backend)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[name], expected) for name in range(3))


def test_nothing_grows_and_everything_is_given_back(t5_dir: Path) -> None:
    gc.collect()  # what tests before this one left
    before = running_threads()
    backend = load(t5_dir)
    stated = backend.memory_bytes()
    all_logits(backend)
    assert backend.memory_bytes() == stated
    assert running_threads() == before + 1
    del backend
    gc.collect()
    assert running_threads() == before


def running_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_the_engine_takes_it_where_it_can(t5_dir: Path) -> None:
    for config, kind in (
        (EngineConfig(), NativeBackend),
        (EngineConfig(dtype="int8"), NativeBackend),
        (EngineConfig(backend="native", dtype="bfloat16"), NativeBackend),
        (EngineConfig(backend="torch"), TorchBackend),
        (EngineConfig(dtype="float64"), TorchBackend),
    ):
        assert type(Engine.load(Model.open(t5_dir), config)._backend) is kind


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EngineConfig(backend="native", dtype="float64"), "backend 'native' is not possible: .* not in 'float64'"),
        (EngineConfig(backend="fast"), "backend 'fast' is not known: use 'auto', 'native' or 'torch'"),
        (EngineConfig(slots=10**7), r"caches of 10000000 slots .* need \d+ MB, but \d+ MB are free: lower one"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(t5_dir: Path, config: EngineConfig, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        Engine.load(Model.open(t5_dir), config)
