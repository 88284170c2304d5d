"""What models of the hub say about decoding, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_store.model.model import Model
from server.engine.engine import Engine
from server.engine.errors import BadRequestError, LoadError
from server.engine.interface.config import EngineConfig
from server.engine.interface.generation_config import GenerationDefaults, read_generation_config, with_seed
from server.engine.interface.parameters import GenerationParameters
from tests.engine.generation_reference import Comparison, generate_reference
from tests.engine.reference import load_reference, random_sources
from tests.tiny_models import build_tiny_t5

SUMMARIZER = {  # as facebook/bart-large-cnn
    "_from_model_config": True,
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "length_penalty": 2.0,
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "pad_token_id": 1,
    "transformers_version": "4.31.0",
}
TRANSLATOR = {  # as Helsinki-NLP/opus-mt
    "bad_words_ids": [[99]],
    "decoder_start_token_id": 99,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "max_length": 512,
    "num_beams": 6,
    "pad_token_id": 99,
    "renormalize_logits": True,
}


def read(fields: dict[str, Any], *, most: int = 200) -> GenerationDefaults:
    return read_generation_config(
        fields,
        path=Path("generation_config.json"),
        vocab_size=100,
        eos_id=1,
        decoder_start_id=3,
        most_new_tokens=most,
    )


def test_a_summarizer_s_defaults() -> None:
    defaults = read(SUMMARIZER)
    assert (defaults.eos_ids, defaults.decoder_start_id) == ((2,), 2)
    assert defaults.resolve({}) == GenerationParameters(
        max_new_tokens=141,
        min_new_tokens=55,
        num_beams=4,
        early_stopping=True,
        length_penalty=2.0,
        no_repeat_ngram_size=3,
        forced_bos_token_id=0,
        forced_eos_token_ids=(2,),
        top_k=50,
    )


def test_a_translator_s_defaults() -> None:
    assert read(TRANSLATOR).resolve({}) == GenerationParameters(
        max_new_tokens=200,
        num_beams=6,
        bad_words=((99,),),
        forced_eos_token_ids=(0,),
        renormalize_logits=True,
        top_k=50,
    )


def test_a_file_that_says_nothing_leaves_greedy_decoding() -> None:
    defaults = read({"transformers_version": "5.23", "assistant_confidence_threshold": 0.4, "my_own_key": [1]})
    assert defaults.resolve({}) == GenerationParameters(max_new_tokens=200, top_k=50)
    assert (defaults.eos_ids, defaults.decoder_start_id) == ((1,), 3)


def test_several_end_tokens_and_null_values() -> None:
    defaults = read({"eos_token_id": [4, 5], "num_beams": None, "early_stopping": "never", "suppress_tokens": [7]})
    assert defaults.eos_ids == (4, 5)
    assert (defaults.parameters.num_beams, defaults.parameters.early_stopping) == (1, "never")
    assert defaults.parameters.suppress_tokens == (7,)


def test_a_temperature_of_zero_means_nothing_without_sampling() -> None:
    assert read({"temperature": 0.0}).resolve({}).temperature == 1.0
    with pytest.raises(LoadError, match="temperature"):
        read({"temperature": 0.0, "do_sample": True})


def test_what_a_request_gives_goes_before() -> None:
    resolved = read(SUMMARIZER).resolve({"num_beams": 1, "max_new_tokens": 10, "logprobs": True})
    assert (resolved.num_beams, resolved.max_new_tokens, resolved.logprobs) == (1, 10, True)
    assert resolved.min_new_tokens == 10, "the model's least length gives way to the request's most"
    assert read(SUMMARIZER).resolve({"max_new_tokens": 10, "min_new_tokens": 12}).min_new_tokens == 12


def test_lengths_of_the_model_count_the_prefix_and_those_of_new_tokens_do_not() -> None:
    counted = read({"max_length": 20, "min_length": 8}).resolve({"prefix_ids": (5,) * 4})
    assert (counted.max_new_tokens, counted.min_new_tokens) == (15, 3)
    fresh = read({"max_new_tokens": 20, "min_new_tokens": 8}).resolve({"prefix_ids": (5,) * 4})
    assert (fresh.max_new_tokens, fresh.min_new_tokens) == (20, 8)
    with pytest.raises(
        BadRequestError, match="prefix_ids has 30 tokens, which leaves none of this model's max_length of"
    ):
        read({"max_length": 20}).resolve({"prefix_ids": (5,) * 30})
    given = read({"max_length": 20}).resolve({"prefix_ids": (5,) * 30, "max_new_tokens": 4})
    assert given.max_new_tokens == 4


def test_a_prefix_takes_its_room_from_a_default_that_is_the_engine_s_limit() -> None:
    assert read({}, most=20).resolve({"prefix_ids": (5,) * 4}).max_new_tokens == 16
    assert read({"max_length": 500}, most=20).resolve({"prefix_ids": (5,) * 4}).max_new_tokens == 16


def test_a_seed_is_drawn_where_one_is_needed() -> None:
    sampling = read({"do_sample": True, "temperature": 0.7})
    assert with_seed(sampling.resolve({})).seed != with_seed(sampling.resolve({})).seed
    assert with_seed(sampling.resolve({"seed": 5})).seed == 5
    assert with_seed(sampling.resolve({"do_sample": False})).seed is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha is 0.6, which this engine does not support: remove it"),
        ({"num_beam_groups": 2}, "num_beam_groups is 2, which this engine does not support"),
        ({"encoder_no_repeat_ngram_size": 3}, "encoder_no_repeat_ngram_size is 3, which"),
        ({"exponential_decay_length_penalty": [5, 1.1]}, "exponential_decay_length_penalty is "),
        ({"num_beams": 0}, "num_beams is 0: it must be a whole number from 1"),
        ({"max_length": 1}, "max_length is 1: it must be a whole number from 2"),
        ({"max_new_tokens": True}, "max_new_tokens is True: it must be"),
        ({"temperature": 0, "do_sample": True}, "temperature is 0: it must be a number of at least 1e-30"),
        ({"length_penalty": "long"}, "length_penalty is 'long': it must be a number"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon': it must be true or false"),
        ({"eos_token_id": 100}, "eos_token_id is 100: it must be token ids below vocab_size, 100"),
        ({"bad_words_ids": [5]}, r"bad_words_ids is \[5\]: it must be a list of lists"),
        ({"bad_words_ids": [[]]}, r"bad_words_ids is \[\[\]\]: it must be a list of lists"),
        ({"forced_bos_token_id": [1, 2]}, r"forced_bos_token_id is \[1, 2\]: it must be one token id"),
    ],
)
def test_what_cannot_be_honoured_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LoadError, match=rf"generation_config\.json: {message}"):
        read(fields)


@pytest.mark.parametrize("key", ["diversity_penalty", "epsilon_cutoff", "guidance_scale", "encoder_repetition_penalty"])
def test_neutral_values_of_what_is_refused_are_fine(key: str) -> None:
    neutral = 1.0 if key in ("guidance_scale", "encoder_repetition_penalty") else 0.0
    assert read({key: neutral}).parameters == read({}).parameters


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_the_defaults_of_a_model_are_transformers(tmp_path: Path, where: str) -> None:
    """Where a model has no generation_config.json, as older ones, its config.json says it."""
    directory = build_tiny_t5(tmp_path / "model")
    wanted = {"max_length": 14, "min_length": 5, "num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2}
    own = json.loads((directory / "generation_config.json").read_text())
    del own["max_new_tokens"]
    if where == "config.json":
        (directory / "generation_config.json").unlink()
        own = json.loads((directory / where).read_text())
    (directory / where).write_text(json.dumps(own | wanted))
    engine = Engine.load(Model.open(directory), EngineConfig(slots=3, max_source_tokens=20, max_new_tokens=20))
    model, comparison = load_reference(directory), Comparison()
    resolved = engine.defaults.resolve({})
    assert resolved.max_new_tokens == 13
    for source in random_sources(4, longest=20):
        (sequence,) = engine.generate([source], resolved)
        comparison.check(sequence.hypotheses, generate_reference(model, source, None))
    assert comparison.undecided == 0


def test_defaults_that_the_engine_has_no_room_for_are_refused_at_load(tmp_path: Path) -> None:
    directory = build_tiny_t5(tmp_path / "model")
    (directory / "generation_config.json").write_text('{"num_beams": 4}')
    with pytest.raises(
        LoadError, match=r"generation_config\.json does not suit .*: num_beams is 4: it must be from 1 to 3"
    ):
        Engine.load(Model.open(directory), EngineConfig(slots=3))
