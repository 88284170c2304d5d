"""Model directories: which files belong to a tokenizer, and what a new model takes from one."""

from pathlib import Path
from typing import Literal

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from model_store.model.config import spec_of
from model_store.model.model import tokenizer_files
from nash.errors import RequestError
from nash.modeling.fresh import new_model
from nash.recipes.recipe import ModelShape

SHAPE = ModelShape(d_model=8, num_heads=2, d_kv=4, d_ff=16, encoder_layers=1, decoder_layers=1)
WORDS = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1, "a": 2}, unk_token="<pad>"))


def test_the_files_of_a_tokenizer(tmp_path: Path) -> None:
    """Marian has two vocabularies."""
    files = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "target_vocab.json", "source.spm", "target.spm"}
    for name in (*files, "config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    assert {path.name for path in tokenizer_files(tmp_path)} == files


@pytest.mark.parametrize("missing", ["pad_token", "eos_token"])
def test_a_tokenizer_without_a_token_that_a_model_needs(missing: str) -> None:
    tokens = {"pad_token": "<pad>", "eos_token": "</s>"}
    del tokens[missing]
    with pytest.raises(RequestError, match=f"the tokenizer has no {missing}"):
        new_model(SHAPE, PreTrainedTokenizerFast(tokenizer_object=WORDS, **tokens), 4, 4)


@pytest.mark.parametrize("family", ["t5", "marian"])
def test_a_new_model_has_its_tokenizers_vocabulary(family: Literal["t5", "marian"]) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=WORDS, pad_token="<pad>", eos_token="</s>")
    model = new_model(SHAPE.model_copy(update={"family": family}), tokenizer, 4, 4)
    config = model.config
    assert (config.model_type, config.vocab_size, config.pad_token_id, config.eos_token_id) == (family, 3, 0, 1)
    assert config.decoder_start_token_id == 0
    assert model.generation_config.max_new_tokens == 4
    spec = spec_of(config.to_dict())
    assert (spec.d_model, spec.num_heads, spec.head_dim, spec.d_ff) == (8, 2, 4, 16)
    assert spec.max_positions == (512 if family == "marian" else None)
