"""What an engine does with slots, failures and limits."""

import gc
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.errors import BadRequestError, LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence, Status
from tests.engine.reference import random_sources
from tests.tiny_models import VOCABULARY, build_tiny_t5

CONFIG = EngineConfig(slots=3, max_source_tokens=20, max_new_tokens=24, ahead_s=0.0)  # one step at a time
FORCED = GenerationParameters(max_new_tokens=10, ignore_eos=True)
SOURCES = random_sources(9, longest=20)
POISON = VOCABULARY["q"]


def sequence(number: int, source: list[int], parameters: GenerationParameters = FORCED) -> Sequence:
    return Sequence(id=number, source_ids=source, parameters=parameters)


@pytest.fixture
def engine(t5_dir: Path) -> Engine:
    return Engine.load(Model.open(t5_dir), CONFIG)


def test_a_cancelled_sequence_frees_its_slot_before_the_next_step(engine: Engine) -> None:
    sequences = [sequence(i, [3] * 8) for i in range(4)]
    for one in sequences:
        engine.add(one)
    engine.step()
    assert [s.status for s in sequences] == [Status.RUNNING] * 3 + [Status.WAITING]
    assert engine.cancel(1)
    assert (sequences[1].status, sequences[1].rows) == (Status.CANCELLED, [])
    assert {0, 2} <= {event.sequence_id for event in engine.step()}
    assert sequences[3].status is Status.RUNNING
    assert not engine.cancel(1)
    assert not engine.cancel(99)
    while not engine.idle:
        engine.step()
    assert [len(s.tokens) for s in sequences] == [10, 1, 10, 10]


def test_a_waiting_sequence_can_be_cancelled(engine: Engine) -> None:
    one = sequence(0, SOURCES[0])
    engine.add(one)
    assert engine.cancel(0)
    assert engine.idle
    assert engine.step() == []
    assert (one.status, one.tokens) == (Status.CANCELLED, [])


def test_a_sequence_that_is_not_finite_fails_alone(tmp_path: Path) -> None:
    directory = build_tiny_t5(tmp_path / "model", gated=True, tied=False)
    healthy = [[token for token in source if token != POISON] for source in SOURCES]
    expected = [s.tokens for s in Engine.load(Model.open(directory), CONFIG).generate(healthy, FORCED)]
    poison(directory, POISON)

    engine, events = Engine.load(Model.open(directory), CONFIG), []
    sick = [sequence(100 + i, [POISON, *source[:10]]) for i, source in enumerate(SOURCES)]
    well = [sequence(i, source) for i, source in enumerate(healthy)]
    for pair in zip(sick, well, strict=True):
        for one in pair:
            engine.add(one)
        events += engine.step()
    while not engine.idle:
        events += engine.step()
        engine.check_integrity()
    assert all(s.status is Status.FAILED and s.tokens == [] and s.error for s in sick)
    for one, tokens in zip(well, expected, strict=True):
        if POISON in tokens[:-1]:  # fed back into the decoder, it fails the step after
            assert (one.status, one.tokens) == (Status.FAILED, tokens[: tokens.index(POISON) + 1])
        else:
            assert (one.status, one.tokens) == (Status.FINISHED, tokens)
    assert {s.status for s in well} == {Status.FINISHED, Status.FAILED}, "the poison spares all, or none"
    errors = [event for event in events if event.error is not None]
    assert {e.sequence_id for e in errors} == {s.id for s in sick + well if s.status is Status.FAILED}
    assert all(event.token is None and event.finish_reason is None for event in errors)


def poison(directory: Path, token: int) -> None:
    """Make a token's embedding NaN; the output matrix is another one."""
    tensors = load_file(directory / "model.safetensors")
    tensors["shared.weight"][token] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_memory_stays_what_it_was_after_load(engine: Engine) -> None:
    engine.generate(SOURCES, FORCED)
    before, stated = live_tensor_bytes(), engine.memory_bytes()
    for _ in range(3):
        engine.generate(SOURCES, FORCED)
    assert live_tensor_bytes() == before
    assert engine.memory_bytes() == stated


def test_the_stated_cache_is_the_slots_times_both_lengths(t5_dir: Path) -> None:
    engine = Engine.load(Model.open(t5_dir), replace(CONFIG, backend="torch"))
    # 3 layers x 4 heads x 8 wide, keys and values, float32; lengths rounded up to 32 (self) and 24 (cross).
    assert engine.memory_bytes()["cache"] == 3 * 3 * 4 * 8 * 2 * 4 * (32 + 24)


def live_tensor_bytes() -> int:
    gc.collect()
    storages = {
        obj.untyped_storage().data_ptr(): obj.untyped_storage().nbytes()
        for obj in gc.get_objects()
        if type(obj) is torch.Tensor and not obj.is_mkldnn
    }
    return sum(storages.values())


def test_step_stats_count_what_a_step_did(t5_dir: Path) -> None:
    engine = Engine.load(Model.open(t5_dir), replace(CONFIG, backend="torch"))  # the native one pads nothing
    for i, length in enumerate((5, 5, 9, 9)):
        engine.add(sequence(i, [3] * length))
    engine.step()
    stats = engine.step_stats
    assert (stats.batch_size, engine._scheduler.running, engine._scheduler.waiting) == (3, 3, 1)
    assert (stats.source_tokens, stats.padding_tokens) == (19, 3 * 16 - 19)
    assert stats.encode_s > 0
    assert stats.decode_s > 0
    engine.step()
    assert (engine.step_stats.encode_s, engine.step_stats.source_tokens) == (0, 0)


def test_timings_follow_a_sequence(engine: Engine) -> None:
    one = engine.generate([SOURCES[0]], FORCED)[0]
    timings = one.timings
    assert timings.queue_ms + timings.encode_ms + timings.decode_ms == pytest.approx(timings.total_ms)
    assert timings.queue_ms + timings.encode_ms < timings.time_to_first_token_ms < timings.total_ms
    rest_ms = timings.total_ms - timings.time_to_first_token_ms
    assert timings.time_per_output_token_ms == pytest.approx(rest_ms / 9)
    short = engine.generate([SOURCES[0]], GenerationParameters(max_new_tokens=1))[0]
    assert short.timings.time_per_output_token_ms is None


@pytest.mark.parametrize(
    ("source", "max_new_tokens", "message"),
    [
        ([], 5, "the source is empty"),
        ([3] * 21, 5, "the source has 21 tokens, but this model is loaded for at most 20"),
        ([3, 30], 5, "holds token 30, which is outside the vocabulary of 30"),
        ([-1, 3], 5, "holds token -1, which is outside the vocabulary of 30"),
        ([3], 0, "max_new_tokens is 0: it must be from 1 to 24"),
        ([3], 25, "max_new_tokens is 25: it must be from 1 to 24"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(
    engine: Engine, source: list[int], max_new_tokens: int, message: str
) -> None:
    parameters = GenerationParameters(max_new_tokens=max_new_tokens)
    with pytest.raises(BadRequestError, match=message):
        engine.add(sequence(0, source, parameters))
    with pytest.raises(BadRequestError, match=message):
        engine.generate([SOURCES[0], source], parameters)
    assert engine.idle


def test_an_id_in_use_is_refused(engine: Engine) -> None:
    engine.add(sequence(7, SOURCES[0]))
    with pytest.raises(BadRequestError, match="id 7 is in use"):
        engine.add(sequence(7, SOURCES[1]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EngineConfig(dtype="int3"), "dtype 'int3' is not supported: use one of auto, float32, bfloat16"),
        (EngineConfig(dtype="float16"), "dtype 'float16' is for CUDA devices"),
        (EngineConfig(threads=1025), "threads is 1025: it must be from 1 to 1024"),
        (EngineConfig(threads=0), "threads is 0: it must be from 1 to 1024"),
        (EngineConfig(slots=10**7), r"the caches of 10000000 slots .* need \d+ MB, but \d+ MB are free"),
    ],
)
def test_a_config_that_cannot_be_met_is_refused(t5_dir: Path, config: EngineConfig, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        Engine.load(Model.open(t5_dir), config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_there_is_refused(t5_dir: Path) -> None:
    with pytest.raises(LoadError, match="device 'cuda' is not available"):
        Engine.load(Model.open(t5_dir), EngineConfig(device="cuda"))


def test_files_that_are_missing_or_broken_are_named(t5_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(t5_dir, tmp_path / "model"))
    (directory / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(LoadError, match=r"model\.safetensors is not a safetensors file"):
        Engine.load(Model.open(directory), CONFIG)
    (directory / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"model\.safetensors is not there"):
        Engine.load(Model.open(directory), CONFIG)
    (directory / "generation_config.json").write_text("{")
    with pytest.raises(LoadError, match=r"generation_config\.json is not JSON"):
        Engine.load(Model.open(directory), CONFIG)


def test_weights_that_do_not_fit_the_config_are_named(t5_dir: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(t5_dir, tmp_path / "model"))
    path, name = directory / "model.safetensors", "encoder.block.1.layer.1.DenseReluDense.wi.weight"
    tensors = load_file(t5_dir / "model.safetensors")
    for change, message in (
        ({name: None}, f"has no tensor '{name}', which config.json calls for"),
        ({name: torch.zeros(63, 32)}, rf"'{name}' has shape \[63, 32\], config.json calls for \[64, 32\]"),
        ({"decoder.extra": torch.zeros(1)}, "has the tensor 'decoder.extra', which config.json does not know"),
        (
            {name: torch.zeros(64, 32, dtype=torch.int8)},
            f"'{name}' is I8, not F64, F32, F16 or BF16: save",
        ),
    ):
        changed = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(LoadError, match=message):
            Engine.load(Model.open(directory), CONFIG)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [('{"max_new_tokens": 9}', 9), ('{"max_length": 9}', 8), ("{}", 24), ('{"max_new_tokens": 99}', 24)],
)
def test_the_default_length_comes_from_the_generation_config(
    t5_dir: Path, tmp_path: Path, settings: str, expected: int
) -> None:
    directory = Path(shutil.copytree(t5_dir, tmp_path / "model"))
    (directory / "generation_config.json").write_text(settings)
    assert Engine.load(Model.open(directory), CONFIG).defaults.parameters.max_new_tokens == expected
