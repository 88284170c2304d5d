from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer, T5ForConditionalGeneration

WORDS = ["hello", "a", "the quick brown fox", "zzzz", "speech synthesis"]


def generate(client: httpx.Client, inputs: object, **body: Any) -> Any:
    response = client.post("/generate", json={"inputs": inputs, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_texts_are_those_of_transformers(client: httpx.Client, tiny_dense: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_dense)
    model = T5ForConditionalGeneration.from_pretrained(tiny_dense).eval()
    for word in WORDS:
        with torch.inference_mode():
            ids = model.generate(**tokenizer(word, return_tensors="pt"), max_new_tokens=20)[0]
        answer = generate(client, word, parameters={"max_new_tokens": 20})
        assert answer["generated_text"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_an_answer_names_its_variant_and_its_times(client: httpx.Client) -> None:
    answer = generate(client, "hello")
    assert (answer["model"], answer["variant"], answer["ref"]) == ("tiny", "dense", "tiny@dense")
    timings = answer["timings"]
    assert list(timings) == [
        "queue_ms",
        "encode_ms",
        "decode_ms",
        "total_ms",
        "time_to_first_token_ms",
        "time_per_output_token_ms",
    ]
    parts = timings["queue_ms"] + timings["encode_ms"] + timings["decode_ms"]
    assert timings["total_ms"] == pytest.approx(parts, abs=0.01)
    assert 0 < timings["time_to_first_token_ms"] <= timings["total_ms"]
    assert "details" not in answer


def test_the_default_length_is_that_of_generation_config(client: httpx.Client) -> None:
    answer = generate(client, "hello", parameters={"details": True})
    details = answer["details"]
    assert details["generated_tokens"] == 24 or details["finish_reason"] == "eos_token"


def test_details(client: httpx.Client) -> None:
    answer = generate(client, "hello", parameters={"details": True, "max_new_tokens": 5, "seed": 3})
    details = answer["details"]
    assert details["finish_reason"] in ("length", "eos_token")
    assert (details["input_length"], details["seed"], details["prefill"]) == (6, 3, [])
    assert details["generated_tokens"] == len(details["tokens"])
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    assert all(token["logprob"] <= 0 for token in details["tokens"])
    assert generate(client, "hello", parameters={"max_new_tokens": 1})["timings"]["time_per_output_token_ms"] is None


def test_headers_are_those_of_text_generation_inference(client: httpx.Client) -> None:
    headers = client.post("/generate", json={"inputs": "hello", "parameters": {"max_new_tokens": 4}}).headers
    for name in ("x-total-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert int(headers[name]) >= 0
    assert headers["x-prompt-tokens"] == "6"
    assert 1 <= int(headers["x-generated-tokens"]) <= 4
    assert len(headers["x-request-id"]) == 16


def test_a_request_id_is_echoed_where_it_is_one(client: httpx.Client) -> None:
    assert client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_a_list_gives_a_list_in_its_order(client: httpx.Client) -> None:
    answers = generate(client, WORDS, parameters={"max_new_tokens": 12})
    alone = [generate(client, word, parameters={"max_new_tokens": 12}) for word in WORDS]
    assert [answer["generated_text"] for answer in answers] == [answer["generated_text"] for answer in alone]
    assert len(generate(client, ["hello"])) == 1


@pytest.mark.parametrize(
    ("model", "ref"),
    [
        (None, "tiny@dense"),
        ("tiny", "tiny@dense"),
        ("tiny@pruned", "tiny@pruned"),
        ("tiny:2", "tiny@pruned"),
        ("tiny:001", "tiny@dense"),
    ],
)
def test_a_model_is_named_as_in_the_store(client: httpx.Client, model: str | None, ref: str) -> None:
    assert generate(client, "hello", model=model)["ref"] == ref


def test_what_changes_nothing_is_accepted(client: httpx.Client) -> None:
    neutral = {
        "do_sample": False, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "typical_p": 0.9, "num_beams": 1,
        "length_penalty": 1.0, "early_stopping": False, "num_return_sequences": 1, "best_of": 1,
        "min_new_tokens": 0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "stop": [], "seed": 1,
        "return_full_text": True, "decoder_input_details": False, "top_n_tokens": None, "forced_bos_token": None,
    }  # fmt: skip
    assert (
        generate(client, "hello", parameters=neutral)["generated_text"] == generate(client, "hello")["generated_text"]
    )


def test_truncate_keeps_the_beginning(client: httpx.Client) -> None:
    long = "hello" + "x" * 100
    cut = generate(client, long, parameters={"truncate": 6, "details": True})
    assert cut["details"]["input_length"] == 6
    assert cut["generated_text"] == generate(client, "hello")["generated_text"]


def test_the_root_answers_inference_clients(client: httpx.Client) -> None:
    body = {
        "inputs": "hello",
        "parameters": {"generate_parameters": {"max_new_tokens": 5}, "clean_up_tokenization_spaces": True},
    }
    (answer,) = client.post("/", json=body).json()
    text = generate(client, "hello", parameters={"max_new_tokens": 5})["generated_text"]
    assert answer["generated_text"] == answer["summary_text"] == answer["translation_text"] == text
