"""huggingface_hub's InferenceClient, as it is installed, against the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import InferenceClient, TextGenerationOutput, TextGenerationStreamOutput
from huggingface_hub.errors import ValidationError
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from tests.running_server import RunningServer
from tests.tiny_families import CASES, build_tiny
from tests.tiny_models import CHARACTERS


@pytest.fixture
def inference(server: RunningServer) -> InferenceClient:
    return InferenceClient(base_url=server.url)


def plain(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": "hello", "parameters": {**parameters, "details": True}}
    answer: dict[str, Any] = client.post("/generate", json=body).json()
    return answer


def test_text_generation(inference: InferenceClient, client: httpx.Client) -> None:
    text = plain(client, max_new_tokens=9)["generated_text"]
    assert inference.text_generation("hello", max_new_tokens=9) == text
    streamed = inference.text_generation("hello", max_new_tokens=9, stream=True)
    assert "".join(streamed) == text
    stopped = inference.text_generation("hello", max_new_tokens=9, stop=[text[4:6]])
    assert stopped == text[: text.index(text[4:6])]
    assert "".join(inference.text_generation("hello", max_new_tokens=9, stop=[text[4:6]], stream=True)) == stopped


def test_text_generation_with_every_parameter_and_details(inference: InferenceClient, client: httpx.Client) -> None:
    asked: dict[str, Any] = {
        "best_of": 2, "decoder_input_details": True, "do_sample": True, "frequency_penalty": 0.0, "max_new_tokens": 9,
        "repetition_penalty": 1.2, "return_full_text": False, "seed": 7, "stop": ["#"], "temperature": 1.3,
        "top_k": 20, "top_n_tokens": 3, "top_p": 0.9, "truncate": 5, "typical_p": 0.9, "watermark": False,
    }  # fmt: skip
    output = inference.text_generation("hello", details=True, **asked)
    expected = plain(client, **asked)
    assert isinstance(output, TextGenerationOutput)
    assert output.generated_text == expected["generated_text"]
    details = output.details
    assert details is not None
    assert (details.seed, details.prefill) == (7, [])
    assert details.generated_tokens == len(details.tokens) == len(details.top_tokens or []) > 0
    assert [token.id for token in details.tokens] == [token["id"] for token in expected["details"]["tokens"]]
    assert details.top_tokens == expected["details"]["top_tokens"]  # the client leaves these as they come
    assert all(len(top) == 3 for top in expected["details"]["top_tokens"])
    (other,) = details.best_of_sequences or []
    assert other.generated_text == expected["sequences"][1]["generated_text"]
    assert other.generated_tokens == len(other.tokens)


def test_streamed_text_generation_with_details(inference: InferenceClient, client: httpx.Client) -> None:
    asked: dict[str, Any] = {"max_new_tokens": 9, "do_sample": True, "seed": 3, "top_n_tokens": 2}
    events = list(inference.text_generation("hello", stream=True, details=True, **asked))
    expected = plain(client, **asked)
    assert all(isinstance(event, TextGenerationStreamOutput) for event in events)
    assert "".join(event.token.text for event in events) == expected["generated_text"]
    assert [len(event.top_tokens or []) for event in events] == [2] * len(events)
    assert [event.details for event in events[:-1]] == [None] * (len(events) - 1)
    last = events[-1]
    assert last.generated_text == expected["generated_text"]
    assert last.details is not None
    assert (last.details.seed, last.details.generated_tokens) == (3, len(events))
    assert last.details.finish_reason in ("length", "eos_token")


def test_what_is_refused_is_its_validation_error(inference: InferenceClient) -> None:
    with pytest.raises(ValidationError, match=r"parameters\.adapter_id is not available here: leave it out"):
        inference.text_generation("hello", adapter_id="a")


def test_summarization_and_translation(inference: InferenceClient, client: httpx.Client) -> None:
    beams = {"num_beams": 3, "max_new_tokens": 9}
    text = plain(client, **beams)["generated_text"]
    assert inference.summarization("hello", generate_parameters=beams).summary_text == text
    assert inference.translation("hello", generate_parameters=beams).translation_text == text
    assert inference.summarization("hello").summary_text == plain(client)["generated_text"]
    long = "hello" * 30
    with pytest.raises(Exception, match="422"):
        inference.summarization(long, truncation="do_not_truncate")
    cut = client.post("/generate", json={"inputs": long, "parameters": {"truncate": 64}}).json()["generated_text"]
    summary = inference.summarization(long, truncation="longest_first", clean_up_tokenization_spaces=True)
    assert summary.summary_text == cut
    with pytest.raises(Exception, match="422"):
        inference.translation("hello", src_lang="en_XX", tgt_lang="fr_XX")


SPECIAL = ("<s>", "<pad>", "</s>")
LANGUAGES = ("en_XX", "fr_XX")
VOCABULARY = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS, *LANGUAGES))}
EOS, EN, FR = VOCABULARY["</s>"], VOCABULARY["en_XX"], VOCABULARY["fr_XX"]


def build_family(folder: Path, name: str, template: str, **config: Any) -> Path:
    """A tiny model of a family with a tokenizer that frames texts as the family's does."""
    directory = build_tiny(CASES[name], folder / name, seed=7)  # not one that says the same to everything
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(token, VOCABULARY[token]) for token in (*SPECIAL, *LANGUAGES)]
    )
    tokenizer.decoder = Fuse()
    tokenizer.add_special_tokens([*SPECIAL, *LANGUAGES])
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = {"decoder_start_token_id": EOS, "eos_token_id": EOS, "pad_token_id": 1, "max_new_tokens": 12, **config}
    GenerationConfig(**fields).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path]]:
    """mBART, which speaks languages, and BART, which is decoded with beams where nothing else is said."""
    folder = tmp_path_factory.mktemp("families")
    mbart = build_family(folder, "mbart", "$A </s> en_XX")
    bart = build_family(
        folder, "bart", "<s> $A </s>", num_beams=4, no_repeat_ngram_size=2, forced_bos_token_id=0, length_penalty=2.0
    )
    options = "threads=1,slots=4,max_source_tokens=32,max_new_tokens=32"
    with RunningServer("--model", f"{mbart},{options}", "--model", f"{bart},{options}") as running:
        yield running, folder


def by_transformers(directory: Path, source: list[int], **parameters: Any) -> str:
    model = AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    with torch.inference_mode():
        ids = model.generate(torch.tensor([source]), **parameters)[0].tolist()
    return str(Tokenizer.from_file(str(directory / "tokenizer.json")).decode(ids, skip_special_tokens=True))


def test_translation_between_languages(families: tuple[RunningServer, Path]) -> None:
    server, folder = families
    inference = InferenceClient(base_url=server.url)
    letters = [VOCABULARY[character] for character in "hello"]
    there = inference.translation("hello", src_lang="en_XX", tgt_lang="fr_XX").translation_text
    back = inference.translation("hello", src_lang="fr_XX", tgt_lang="en_XX").translation_text
    assert there == by_transformers(folder / "mbart", [*letters, EOS, EN], forced_bos_token_id=FR)
    assert back == by_transformers(folder / "mbart", [*letters, EOS, FR], forced_bos_token_id=EN)
    without = inference.translation("hello", generate_parameters={"forced_bos_token": "fr_XX"}).translation_text
    same = inference.translation("hello", src_lang="fr_XX", tgt_lang="fr_XX").translation_text
    assert without == there
    assert len({there, back, same}) == 3
    with pytest.raises(Exception, match="422"):
        inference.translation("hello", src_lang="en_XX", tgt_lang="de_DE")


def test_a_bart_is_decoded_as_its_own_generation_config_says(families: tuple[RunningServer, Path]) -> None:
    server, folder = families
    source = [0, *(VOCABULARY[character] for character in "hello"), EOS]
    own = by_transformers(folder / "bart", source)
    greedy = by_transformers(folder / "bart", source, num_beams=1)
    prefixed = by_transformers(
        folder / "bart", source, num_beams=1, decoder_input_ids=torch.tensor([[EOS, 0, 3, 4]]), max_new_tokens=6
    )
    assert own != greedy

    def generate(**parameters: Any) -> str:
        body = {"inputs": "hello", "model": "bart", "parameters": parameters}
        return str(httpx.post(f"{server.url}/generate", json=body, timeout=60).json()["generated_text"])

    assert generate() == own
    assert generate(num_beams=1) == greedy
    # The model's first token, <s>, stands before a prefix as it stands before every answer.
    assert "ab" + generate(num_beams=1, decoder_input_text="ab", max_new_tokens=6) == prefixed
