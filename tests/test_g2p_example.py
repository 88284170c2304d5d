"""The shipped example: its data, its model, and the engine beside transformers on real words."""

import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from examples.g2p.prepare import PHONEMES, build_tokenizer, pronunciations, split_of
from model_store.model.model import Model
from nash.recipes.recipe import FinetuneRecipe, PruneRecipe, read_recipe
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from server.engine.sequence import Sequence
from tests.engine.reference import Answer, NearTies, load_reference, reference_answers

EXAMPLE = Path(__file__).parent.parent / "examples" / "g2p"
MODEL = EXAMPLE / "model"
DEMO = EXAMPLE / "demo"
WORDS = 200
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def dictionary() -> dict[str, list[str]]:
    return dict(pronunciations())


@pytest.fixture(scope="module")
def words(dictionary: dict[str, list[str]]) -> list[str]:
    test_words = [word for word in dictionary if split_of(word) == "test"]
    return random.Random(0).sample(test_words, WORDS)


@pytest.fixture(scope="module")
def sources(words: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    return [tokenizer.encode(word).ids for word in words]


@pytest.fixture(scope="module")
def answers(sources: list[list[int]]) -> list[Answer]:
    return reference_answers(load_reference(MODEL), sources, NEW_TOKENS, batch=40)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(Model.open(MODEL), EngineConfig(slots=16, max_source_tokens=64, max_new_tokens=64))


def test_each_word_alone_gets_the_tokens_of_transformers(
    engine: Engine, sources: list[list[int]], answers: list[Answer]
) -> None:
    ties = NearTies()
    for source, answer in zip(sources, answers, strict=True):
        ties.check(engine.generate([source], GenerationParameters(max_new_tokens=NEW_TOKENS))[0].tokens, answer)
    assert ties.compared == WORDS
    assert ties.undecided <= 2, f"{ties.undecided} of {WORDS} words hang on a near tie"


def test_words_that_join_and_leave_a_running_batch_get_the_same(
    engine: Engine, sources: list[list[int]], answers: list[Answer]
) -> None:
    generator, ties = random.Random(1), NearTies()
    parameters = GenerationParameters(max_new_tokens=NEW_TOKENS)
    arrivals = [Sequence(id=i, source_ids=source, parameters=parameters) for i, source in enumerate(sources)]
    sequences = list(arrivals)
    generator.shuffle(arrivals)
    sizes = set()
    while arrivals or not engine.idle:
        for _ in range(min(len(arrivals), generator.choice((0, 1, 2, 5)))):
            engine.add(arrivals.pop())
        engine.step()
        engine.check_integrity()
        sizes.add(engine.step_stats.batch_size)
    for sequence, answer in zip(sequences, answers, strict=True):
        ties.check(sequence.tokens, answer)
    assert ties.compared == WORDS
    assert ties.undecided <= 2, f"{ties.undecided} of {WORDS} words hang on a near tie"
    assert len(sizes) > 8, "the batch never changed its size"


def test_the_shipped_model_knows_common_words(engine: Engine) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    known = {"nash": "N AE SH", "Nashville": "N AE SH V IH L", "phoneme": "F OW N IY M", "KNIGHT": "N AY T"}
    for word, expected in known.items():
        done = engine.generate([tokenizer.encode(word).ids], GenerationParameters(max_new_tokens=NEW_TOKENS))[0]
        assert tokenizer.decode(done.tokens) == expected


def test_the_test_figures_beside_the_model_meet_the_target() -> None:
    figures = json.loads((EXAMPLE / "model-figures.json").read_text(encoding="utf-8"))
    assert figures["n"] > 10_000
    assert figures["dense"]["metrics"]["phoneme_error_rate"] <= 9
    assert figures["dense"]["metrics"]["word_error_rate"] <= 38


def test_the_shipped_model_is_small() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 16 * 2**20


def test_every_split_has_its_share_and_keeps_its_words(dictionary: dict[str, list[str]]) -> None:
    splits = [split_of(word) for word in dictionary]
    shares = {split: splits.count(split) / len(splits) for split in set(splits)}
    assert shares["train"] == pytest.approx(0.9, abs=0.01)
    assert shares["validation"] == pytest.approx(0.02, abs=0.003)
    assert shares["test"] == pytest.approx(0.08, abs=0.01)
    # The hash must never change: published figures hang on it.
    assert [split_of(word) for word in ("nash", "thora", "pub", "the")] == ["train", "test", "test", "train"]


def test_pronunciations_have_no_stress_and_the_first_comes_first(dictionary: dict[str, list[str]]) -> None:
    assert dictionary["tomato"] == ["T AH M EY T OW", "T AH M AA T OW"]
    assert {phoneme for ways in dictionary.values() for phoneme in " ".join(ways).split()} == set(PHONEMES)
    assert len(dictionary) > 120_000


def test_the_tokenizer_reads_spelling_and_phonemes(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    assert tokenizer.encode("Don't").tokens == ["d", "o", "n", "'", "t", "</s>"]
    assert tokenizer.encode("HH AH L OW").tokens == ["HH", "AH", "L", "OW", "</s>"]
    assert tokenizer.encode("é9").tokens == ["<unk>", "<unk>", "</s>"]
    assert tokenizer.decode(tokenizer.encode("HH AH L OW").ids) == "HH AH L OW"
    shipped = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert json.loads(shipped.to_str()) == json.loads(tokenizer.to_str())
    assert AutoTokenizer.from_pretrained(MODEL)("Hello").input_ids == tokenizer.encode("Hello").ids


@pytest.mark.parametrize("name", ["prune", "prune-1"])
def test_the_pruning_recipes_are_valid(name: str) -> None:
    recipe = read_recipe(PruneRecipe, EXAMPLE / f"{name}.toml")
    assert Path(recipe.model) == MODEL
    assert recipe.pruning.encoder_sparsity == 0.3


@pytest.mark.parametrize("folder", [EXAMPLE, DEMO])
def test_the_teachers_recipes_give_the_shipped_shapes(folder: Path) -> None:
    recipe = read_recipe(FinetuneRecipe, folder / "finetune.toml")
    assert recipe.shape is not None
    shipped = Model.open(folder / "model").spec
    assert (recipe.shape.encoder_layers, recipe.shape.decoder_layers) == (6, 6)
    assert (len(shipped.encoder), len(shipped.decoder)) == (6, 6)
    assert (recipe.shape.d_model, recipe.shape.num_heads, recipe.shape.d_ff) == (
        shipped.d_model,
        shipped.num_heads,
        shipped.d_ff,
    )


def test_the_demonstrations_recipe_needs_no_bfloat16_and_prunes_what_is_shipped_dense() -> None:
    recipe = read_recipe(PruneRecipe, DEMO / "prune.toml")
    assert Path(recipe.model) == DEMO / "model"
    assert not Model.open(DEMO / "model").spec.compact
    assert {recipe.prune_training.precision, recipe.final_training.precision} == {"float32"}


def test_the_demonstrations_dense_model_is_small_and_nearly_as_good_as_the_large_one() -> None:
    assert (DEMO / "model" / "model.safetensors").stat().st_size <= 6 * 2**20
    large, small = (
        json.loads((folder / "model-figures.json").read_text(encoding="utf-8")) for folder in (EXAMPLE, DEMO)
    )
    assert small["n"] == large["n"] > 10_000
    word_errors = [figures["dense"]["metrics"]["word_error_rate"] for figures in (large, small)]
    assert word_errors[1] - word_errors[0] <= 4
