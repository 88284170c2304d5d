from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.frontend.requests.parameters import RequestParameters, TaskParameters
from tests.api.conftest import Direct
from tests.api.streams import events_of
from tests.tiny_models import EOS_ID, build_tokenizer

TOKENIZER = build_tokenizer()
SAMPLE = {"do_sample": True, "seed": 1}
BEAMS = {"num_beams": 3}

# What else is given, the parameter, and how the engine calls it where its name is another.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("hello", {}, {"max_new_tokens": 3}, {}),
    ("music", {}, {"min_new_tokens": 5}, {}),
    ("hello", {"seed": 1}, {"do_sample": True}, {}),
    ("hello", SAMPLE, {"temperature": 5.0}, {}),
    ("hello", SAMPLE, {"top_k": 2}, {}),
    ("hello", SAMPLE, {"top_p": 0.3}, {}),
    ("hello", SAMPLE, {"typical_p": 0.3}, {}),
    ("hello", {"do_sample": True}, {"seed": 2**64 - 1}, {}),
    ("hello", {"seed": 1}, {"temperature": 0.7}, {"temperature": 0.7, "do_sample": True}),
    ("hello", {"seed": 1}, {"top_k": 0}, {"top_k": 0, "do_sample": True}),
    ("hello", {"seed": 1}, {"top_p": 0.9}, {"top_p": 0.9, "do_sample": True}),
    ("hello", {"seed": 1}, {"typical_p": 0.9}, {"typical_p": 0.9, "do_sample": True}),
    ("hello", {}, BEAMS, {}),
    ("over", BEAMS, {"length_penalty": -5.0}, {}),
    ("hello", {**BEAMS, "seed": 3}, {"do_sample": True}, {}),
    ("hello", BEAMS, {"num_return_sequences": 3}, {}),
    ("hello", BEAMS, {"best_of": 2}, {"num_return_sequences": 2}),
    ("hello", SAMPLE, {"best_of": 3}, {"num_return_sequences": 3}),
    ("hello", {}, {"repetition_penalty": 1.5}, {}),
    ("hello", {}, {"no_repeat_ngram_size": 2}, {}),
    ("hello", {}, {"forced_bos_token_id": 9}, {}),
    ("hello", {}, {"forced_bos_token": "g"}, {"forced_bos_token_id": 9}),
    ("hello", {}, {"decoder_input_text": "cab"}, {"prefix_ids": (5, 3, 4)}),
    ("hello", {"forced_bos_token": "g"}, {"decoder_input_text": "cab"}, {"prefix_ids": (9, 5, 3, 4)}),
    ("hello", {}, {"top_n_tokens": 3}, {}),
]
ENGINE_NAMES = {"forced_bos_token": "forced_bos_token_id"}


def details_of(client: httpx.Client, text: str, parameters: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/generate", json={"inputs": text, "parameters": {**parameters, "details": True}})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize(("text", "others", "parameter", "engines"), CASES, ids=[str(case[1:3]) for case in CASES])
def test_every_parameter_is_the_engines_and_changes_something(
    client: httpx.Client,
    direct: Direct,
    text: str,
    others: dict[str, Any],
    parameter: dict[str, Any],
    engines: dict[str, Any],
) -> None:
    answer = details_of(client, text, {**others, **parameter})
    given = {"forced_bos_token_id": 9} if "forced_bos_token" in others else others
    expected = direct(text, **given, **(engines or parameter), logprobs=True)
    best, details = expected.hypotheses[0], answer["details"]
    assert answer["generated_text"] == TOKENIZER.decode(best.tokens)
    assert [token["id"] for token in details["tokens"]] == best.tokens
    assert [token["logprob"] for token in details["tokens"]] == pytest.approx(best.logprobs, abs=1e-5)
    assert (details["finish_reason"], details["generated_tokens"]) == (best.finish_reason, len(best.tokens))
    if best.top_tokens:
        told = [[(token["id"], token["text"]) for token in tokens] for tokens in details["top_tokens"]]
        assert told == [[(top.id, TOKENIZER.decode([top.id])) for top in tops] for tops in best.top_tokens]
    if len(expected.hypotheses) > 1:
        assert [each["generated_text"] for each in answer["sequences"]] == [
            TOKENIZER.decode(each.tokens) for each in expected.hypotheses
        ]
        scores = [each["score"] for each in answer["sequences"]]
        assert scores == pytest.approx([each.score for each in expected.hypotheses], abs=1e-5)
        assert scores == sorted(scores, reverse=True)
        assert [each["generated_text"] for each in details["best_of_sequences"]] == [
            each["generated_text"] for each in answer["sequences"][1:]
        ]
        assert all(len(each["tokens"]) == each["generated_tokens"] for each in details["best_of_sequences"])
    without = details_of(client, text, others)
    for each in (answer, without):
        del each["timings"]
    assert answer != without


def test_an_early_end_of_beams_reaches_the_engine() -> None:
    for value in (True, False, "never"):
        assert RequestParameters(early_stopping=value).given() == {"early_stopping": value}


def test_null_is_the_same_as_not_given(client: httpx.Client) -> None:
    nulls = dict.fromkeys([*RequestParameters.model_fields])
    body = {"inputs": "hello", "model": None, "stream": None}
    plain = client.post("/generate", json={"inputs": "hello"}).json()["generated_text"]
    for path, parameters in (
        ("/generate", nulls),
        ("/generate", None),
        ("/", dict.fromkeys([*TaskParameters.model_fields])),
        ("/", None),
    ):
        answer = client.post(path, json={**body, "parameters": parameters}).json()
        assert (answer[0] if path == "/" else answer)["generated_text"] == plain
    assert client.post("/compare", json={"inputs": "hello", "parameters": None, "stream": None}).status_code == 200


def test_what_other_servers_know_is_accepted_where_it_changes_nothing(client: httpx.Client) -> None:
    plain = client.post("/generate", json={"inputs": "hello"}).json()["generated_text"]
    parameters = {"watermark": False, "return_full_text": True, "decoder_input_details": True, "frequency_penalty": 0.0}
    answer = details_of(client, "hello", parameters)
    assert (answer["generated_text"], answer["details"]["prefill"]) == (plain, [])


def test_a_seed_is_drawn_told_and_gives_the_text_again(client: httpx.Client) -> None:
    answers = [details_of(client, "hello", {"do_sample": True}) for _ in range(2)]
    seeds = [answer["details"]["seed"] for answer in answers]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**53 for seed in seeds)
    for answer, seed in zip(answers, seeds, strict=True):
        again = details_of(client, "hello", {"do_sample": True, "seed": seed})
        assert again["generated_text"] == answer["generated_text"]
    assert details_of(client, "hello", {})["details"]["seed"] is None
    response = client.post("/generate", json={"inputs": ["hello"] * 3, "parameters": {"top_k": 9, "details": True}})
    assert len({answer["details"]["seed"] for answer in response.json()}) == 3


def test_a_seed_gives_the_same_text_alone_and_under_load(client: httpx.Client) -> None:
    def sampled(seed: int) -> str:
        body = {"inputs": "under the sea", "parameters": {"seed": seed, "temperature": 1.5, "max_new_tokens": 40}}
        return str(client.post("/generate", json=body).json()["generated_text"])

    def other(number: int) -> int:
        parameters = [{"num_beams": 3}, {"temperature": 2.0}, {}, {"best_of": 2, "top_p": 0.9}][number % 4]
        return client.post("/generate", json={"inputs": "x" * (1 + number), "parameters": parameters}).status_code

    alone = [sampled(seed) for seed in range(8)]
    assert len(set(alone)) == 8
    with ThreadPoolExecutor(12) as pool:
        others = [pool.submit(other, number) for number in range(24)]
        loaded = list(pool.map(sampled, range(8)))
        assert {each.result() for each in others} == {200}
    assert loaded == alone


@pytest.mark.parametrize("parameters", [{"num_beams": 3, "best_of": 2}, {"top_k": 9, "best_of": 3, "seed": 1}])
def test_a_stream_of_beams_or_samples_tells_the_best_one_once_it_is_decided(
    client: httpx.Client, parameters: dict[str, Any]
) -> None:
    body = {"inputs": "hello", "parameters": {**parameters, "details": True, "top_n_tokens": 2}}
    plain = client.post("/generate", json=body).json()
    *before, last = events_of(client.post("/generate_stream", json=body))
    events = [*before, last]
    assert [event["token"] for event in events] == plain["details"]["tokens"]
    assert [event["top_tokens"] for event in events] == plain["details"]["top_tokens"]
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert last["generated_text"] == plain["generated_text"]
    assert last["sequences"] == plain["sequences"]
    assert last["details"]["score"] == plain["details"]["score"] == plain["sequences"][0]["score"]


def test_an_answer_behind_a_prefix_does_not_hold_it(client: httpx.Client) -> None:
    body = {"inputs": "hello", "parameters": {"decoder_input_text": "cab", "max_new_tokens": 9}}
    plain = client.post("/generate", json=body).json()
    longer = {"inputs": "hello", "parameters": {"decoder_input_text": "cab" + plain["generated_text"][:4]}}
    assert client.post("/generate", json=longer).json()["generated_text"].startswith(plain["generated_text"][4:])
    events = events_of(client.post("/generate_stream", json=body))
    assert "".join(event["token"]["text"] for event in events) == plain["generated_text"]
    assert len(events) == 9
    empty = {"inputs": "hello", "parameters": {"decoder_input_text": "", "max_new_tokens": 9}}
    assert client.post("/generate", json=empty).json()["generated_text"] != plain["generated_text"]


def test_compared_variants_get_the_same_parameters_and_one_seed(client: httpx.Client) -> None:
    parameters = {"temperature": 1.2, "max_new_tokens": 12, "stop": ["e"], "decoder_input_text": "ab"}
    results = client.post("/compare", json={"inputs": "hello", "parameters": parameters}).json()["results"]
    seed = results[0]["seed"]
    assert seed is not None
    for result in results:
        assert result["seed"] == seed
        body = {"inputs": "hello", "model": result["ref"], "parameters": {**parameters, "seed": seed, "details": True}}
        alone = client.post("/generate", json=body).json()
        assert result["generated_text"] == alone["generated_text"]
        assert result["finish_reason"] == alone["details"]["finish_reason"]
        assert result["generated_tokens"] == alone["details"]["generated_tokens"]
        assert "details" not in result
    body = {"inputs": "hello", "parameters": {"num_beams": 2, "num_return_sequences": 2, "top_n_tokens": 1}}
    *events, document = events_of(client.post("/compare", json={**body, "stream": True}))
    assert all(len(event["top_tokens"]) == 1 for event in events if "token" in event)
    assert [len(result["sequences"]) for result in document["results"]] == [2, 2]
    assert {result["seed"] for result in document["results"]} == {None}
    body = {"inputs": "hello", "parameters": {"top_k": 5, "seed": 4, "details": True, "top_n_tokens": 2}}
    for result in client.post("/compare", json=body).json()["results"]:
        assert result["details"] == client.post("/generate", json={**body, "model": result["ref"]}).json()["details"]


def test_the_schema_tells_the_ranges(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    properties = schemas["RequestParameters"]["properties"]
    assert set(properties) == set(RequestParameters.model_fields)
    (top_p, _null) = properties["top_p"]["anyOf"]
    assert (top_p["exclusiveMinimum"], top_p["maximum"]) == (0, 1)
    (stop, _null) = properties["stop"]["anyOf"]
    assert (stop["type"], stop["maxItems"]) == ("array", 16)
    assert properties["early_stopping"]["enum"] == [True, False, "never", None]
    assert properties["seed"]["anyOf"][0]["minimum"] == 0
    assert set(schemas["TaskParameters"]["properties"]) == set(TaskParameters.model_fields)


def test_the_end_token_stands_among_the_tokens_without_a_text(client: httpx.Client) -> None:
    details = details_of(client, "music", {})["details"]
    assert details["finish_reason"] == "eos_token"
    last = details["tokens"][-1]
    assert (last["id"], last["text"], last["special"]) == (EOS_ID, "", True)
