"""Every family's logits against transformers', teacher-forced, whatever way the tokens go in."""

from pathlib import Path

import pytest
import torch

from model_store.model.model import Model
from server.engine.backend import Feed
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from tests.engine.family_reference import (
    STEPS,
    TOLERANCES,
    backend_logits,
    check,
    expected_logits,
    load_backend,
    load_reference,
    targets,
    texts,
)
from tests.tiny_families import CASES, Case, build_tiny


@pytest.fixture(scope="session", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="session")
def family_dir(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family; read only."""
    return build_tiny(case, tmp_path_factory.mktemp("family") / "model")


@pytest.mark.parametrize("dtype", TOLERANCES)
@torch.inference_mode()
def test_every_step_s_logits_for_sources_of_mixed_lengths(case: Case, family_dir: Path, dtype: str) -> None:
    spec, reference = Model.open(family_dir).spec, load_reference(case, family_dir, dtype)
    sources, wanted = texts(spec, [5, 70, 1, 33]), targets(Model.open(family_dir).spec, 4)
    ours = backend_logits(load_backend(family_dir, dtype, slots=4), sources, wanted)
    for source, target, logits in zip(sources, wanted, ours, strict=True):
        check(logits, expected_logits(reference, source, target), TOLERANCES[dtype])


@torch.inference_mode()
def test_rows_that_join_and_leave(case: Case, family_dir: Path) -> None:
    """The second leaves, the last takes its slot, a newcomer the last's: positions and lengths differ by row."""
    spec, reference = Model.open(family_dir).spec, load_reference(case, family_dir, "float32")
    sources, wanted = texts(spec, [5, 44, 12, 29]), targets(Model.open(family_dir).spec, 4)
    expected = [expected_logits(reference, s, t) for s, t in zip(sources, wanted, strict=True)]
    backend = load_backend(family_dir, "float32", slots=3)
    backend.encode(sources[:3], [[0], [1], [2]])
    slots, done = [0, 1, 2], [0, 0, 0, 0]

    def step() -> None:
        feed = Feed(
            tokens=[wanted[i][done[i]] for i in slots],
            positions=[done[i] for i in slots],
            slots=list(range(len(slots))),
            wanted=list(range(len(slots))),
        )
        for i, logits in zip(slots, backend.decode(feed), strict=True):
            check(logits, expected[i][done[i]], 1e-5)
            done[i] += 1

    for _ in range(4):
        step()
    backend.move(2, 1, source_length=len(sources[2]), length=done[2])
    slots[1:] = [2]
    for _ in range(2):
        step()
    backend.clear(2)
    backend.encode([sources[3]], [[2]])
    slots.append(3)
    for _ in range(STEPS - 6):
        step()
    assert done == [STEPS, 4, STEPS, STEPS - 6]


@torch.inference_mode()
def test_several_tokens_of_a_sequence_in_one_step(case: Case, family_dir: Path) -> None:
    """A prefix of five, one of one, and a sequence without, of which only the last rows' logits are wanted."""
    spec, reference = Model.open(family_dir).spec, load_reference(case, family_dir, "float32")
    sources, wanted = texts(spec, [9, 20, 3]), targets(Model.open(family_dir).spec, 3)
    expected = [expected_logits(reference, s, t) for s, t in zip(sources, wanted, strict=True)]
    backend = load_backend(family_dir, "float32", slots=3)
    backend.encode(sources, [[0], [1], [2]])
    logits = backend.decode(
        Feed(
            tokens=[*wanted[0][:6], *wanted[1][:2], wanted[2][0]],
            positions=[0, 1, 2, 3, 4, 5, 0, 1, 0],
            slots=[0] * 6 + [1] * 2 + [2],
            wanted=[5, 6, 7, 8],
        )
    )
    check(logits, torch.stack([expected[0][5], expected[1][0], expected[1][1], expected[2][0]]), 1e-5)
    done = [6, 2, 1]
    for _ in range(10):
        feed = Feed(
            tokens=[wanted[i][done[i]] for i in range(3)], positions=list(done), slots=[0, 1, 2], wanted=[0, 1, 2]
        )
        check(backend.decode(feed), torch.stack([expected[i][done[i]] for i in range(3)]), 1e-5)
        done = [n + 1 for n in done]


@torch.inference_mode()
def test_beams_share_a_source_and_change_places(case: Case, family_dir: Path) -> None:
    spec, reference = Model.open(family_dir).spec, load_reference(case, family_dir, "float32")
    (source, other), (first, second) = texts(spec, [14, 6]), targets(Model.open(family_dir).spec, 2)
    backend = load_backend(family_dir, "float32", slots=4)
    backend.encode([other, source], [[0], [1, 2, 3]])
    beams = [first, first, second, first]
    for i in range(6):
        rows = [0, 1, 2, 3]
        backend.decode(Feed(tokens=[b[i] for b in beams], positions=[i] * 4, slots=rows, wanted=rows))
    backend.reorder([1, 2, 3], [2, 1, 2], 6)
    beams = [first, second, first, second]
    logits = backend.decode(Feed(tokens=[b[6] for b in beams], positions=[6] * 4, slots=rows, wanted=rows))
    expected = [expected_logits(reference, s, b[:7])[6] for s, b in zip([other] + [source] * 3, beams, strict=True)]
    check(logits, torch.stack(expected), 1e-5)


@torch.inference_mode()
def test_bfloat16_is_near_float64(case: Case, family_dir: Path) -> None:
    spec, theirs = Model.open(family_dir).spec, load_reference(case, family_dir, "bfloat16")
    exact = load_reference(case, family_dir, "float64")
    sources, wanted = texts(spec, [30, 7]), targets(spec, 2)
    ours = backend_logits(load_backend(family_dir, "bfloat16", slots=2), sources, wanted)
    assert ours.dtype == torch.float32
    true = torch.stack([expected_logits(exact, s, t) for s, t in zip(sources, wanted, strict=True)])
    half = torch.stack([expected_logits(theirs, s, t) for s, t in zip(sources, wanted, strict=True)])
    assert (ours - true).norm() <= 1.5 * (half - true).norm()


def test_a_model_with_so_many_positions_takes_no_more(case: Case, family_dir: Path) -> None:
    spec = Model.open(family_dir).spec
    engine = Engine.load(Model.open(family_dir), EngineConfig(slots=1, max_source_tokens=100, max_new_tokens=90))
    limits = (engine.limits.max_source_tokens, engine.limits.max_new_tokens)
    assert limits == ((100, 90) if spec.max_positions is None else (75, 75))


@torch.inference_mode()
def test_generated_padding_has_no_position_in_m2m_100(tmp_path: Path) -> None:
    """As transformers does it one token at a time; a whole target at once is counted in another way there."""
    case = CASES["m2m_100"]
    directory = build_tiny(case, tmp_path / "model")
    spec, reference = Model.open(directory).spec, load_reference(case, directory, "float32")
    (source,), target = texts(spec, [9]), [spec.decoder_start_id, 9, spec.pad_id, 4]
    backend = load_backend(directory, "float32", slots=1)
    backend.encode([source], [[0]])
    past = None
    for i, token in enumerate(target):
        output = reference(
            input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[token]]), past_key_values=past
        )
        past = output.past_key_values
        check(backend.decode(Feed(tokens=[token], positions=[i], slots=[0], wanted=[0])), output.logits[0], 1e-5)
