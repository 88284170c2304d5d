"""The tokens of every family, as the server answers with them, whatever kernels have made them."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.golden.events import events_of
from tests.golden.expected_files import Golden, differences
from tests.golden.nash_process import NashServe
from tests.golden.tiny_folders import FAMILIES, build, build_pruned

MODELS = (*FAMILIES, "t5-pruned")
SOURCES = ("a small step", "zebra", "the quick brown fox jumps over")
SAMPLED = {"do_sample": True, "temperature": 0.8, "seed": 11}
CASES: Mapping[str, Mapping[str, Any]] = {
    "as the model says": {},
    "greedy": {"num_beams": 1, "top_n_tokens": 3},
    "a length": {"num_beams": 1, "min_new_tokens": 12, "max_new_tokens": 12},
    "at least": {"num_beams": 1, "min_new_tokens": 7, "max_new_tokens": 20},
    "repetition penalty": {"num_beams": 1, "repetition_penalty": 2.5},
    "no pair twice": {"num_beams": 1, "no_repeat_ngram_size": 2},
    "no token twice": {"num_beams": 1, "no_repeat_ngram_size": 1, "max_new_tokens": 8},
    "a token forced": {"num_beams": 1, "forced_bos_token": "k"},
    "gone on with": {"num_beams": 1, "decoder_input_text": "ab"},
    "the beginning of the source": {"num_beams": 1, "truncate": 5},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "beams, long ones": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 2},
    "beams, short ones": {"num_beams": 3, "length_penalty": -1.0, "early_stopping": True, "min_new_tokens": 3},
    "beams, no pair twice": {"num_beams": 2, "no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    "sampled": {"num_beams": 1, **SAMPLED},
    "sampled, top-k": {"num_beams": 1, "top_k": 4, "temperature": 1.5, "seed": 12},
    "sampled, top-p": {"num_beams": 1, "top_p": 0.7, "top_k": 0, "seed": 2**60},
    "sampled, typical": {"num_beams": 1, "typical_p": 0.6, "seed": 14},
    "sampled, several": {"num_beams": 1, "num_return_sequences": 3, **SAMPLED},
    "sampled beams": {"num_beams": 3, "num_return_sequences": 2, **SAMPLED},
}
CLEARLY = 0.005  # hundreds of times what kernels differ by
LANGUAGES = {"mbart": ("de_DE", "ro_RO"), "m2m-100": ("__de__", "fr")}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server with all models, each from its folder."""
    folder = tmp_path_factory.mktemp("families")
    folders = {name: build(name, folder / name) for name in FAMILIES}
    folders["t5-pruned"] = build_pruned(folders["t5"], folder / "t5-pruned")
    options = "dtype=float32,threads=1,slots=4,max_source_tokens=64,max_new_tokens=24"
    models = [argument for each in folders.values() for argument in ("--model", f"{each},{options}")]
    with NashServe(folder, *models) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        yield http


def ask(client: httpx.Client, name: str, inputs: str | list[str], parameters: Mapping[str, Any]) -> Any:
    response = client.post("/generate", json=body(name, inputs, parameters))
    assert response.status_code == 200, f"{parameters}: {response.text}"
    return response.json()


def body(name: str, inputs: str | list[str], parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"inputs": inputs, "model": ref_of(name), "parameters": {"details": True, **parameters}}


def ref_of(name: str) -> str:
    return f"{name}@{'pruned' if name == 't5-pruned' else 'dense'}"


def told(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer without what is the same in all of them, and without times."""
    details = answer["details"]
    shown: dict[str, Any] = {"text": answer["generated_text"]}
    shown |= {key: details[key] for key in ("finish_reason", "generated_tokens", "input_length", "seed")}
    shown |= columns(details["tokens"], "id", "logprob")
    if "top_tokens" in details:
        shown["top_tokens"] = [columns(best, "id", "logprob") for best in details["top_tokens"]]
    if "sequences" in answer:
        shown["sequences"] = [[each["generated_text"], each["score"]] for each in answer["sequences"]]
    return shown


def columns(tokens: list[Mapping[str, Any]], *keys: str) -> dict[str, Any]:
    """Tokens as a list for each of these fields."""
    assert all(token.keys() == {"id", "text", "logprob", "special"} for token in tokens)
    return {f"{key}s": [token[key] for token in tokens] for key in keys}


@pytest.mark.parametrize("name", MODELS)
def test_answers(client: httpx.Client, golden: Golden, name: str) -> None:
    sources = SOURCES[:2]
    answers = {}
    for case, parameters in CASES.items():
        found = ask(client, name, list(sources), parameters)
        answers[case] = {source: told(answer) for source, answer in zip(sources, found, strict=True)}
    golden.check(f"tokens/{name}", answers)


@pytest.mark.parametrize("name", MODELS)
def test_the_chosen_token_is_clearly_the_likeliest(client: httpx.Client, name: str) -> None:
    """Or the golden files would be about rounding. What comes before it is what the model's own settings forbid."""
    parameters = {"num_beams": 1, "repetition_penalty": 1.0, "top_n_tokens": 10}
    for source in SOURCES:
        answer = told(ask(client, name, source, parameters))
        for logprob, best in zip(answer["logprobs"], answer["top_tokens"], strict=True):
            assert logprob - max(other for other in best["logprobs"] if other < logprob) > CLEARLY


@pytest.mark.parametrize("name", MODELS)
def test_in_company_as_alone(client: httpx.Client, name: str) -> None:
    """Several sources in one request, greedy and with samples of their own."""
    for parameters in (CASES["greedy"], CASES["sampled"]):
        together = [told(each) for each in ask(client, name, list(SOURCES), parameters)]
        alone = [told(ask(client, name, source, parameters)) for source in SOURCES]
        assert not list(differences(together, alone, relative=1e-3, absolute=1e-4))


@pytest.mark.parametrize("name", MODELS)
def test_stop_strings(client: httpx.Client, golden: Golden, name: str) -> None:
    """Stops are taken out of the answer without them, so that they come."""
    greedy = {"num_beams": 1, "min_new_tokens": 12, "max_new_tokens": 16}
    answers = {}
    for source in SOURCES[:2]:
        text = ask(client, name, source, greedy)["generated_text"]
        for stop in ([text[3:5]], [text[6:8], "never"], [text[5:7], text[4:7]], ["never"]):
            answers[f"{source}, greedy, {stop}"] = told(ask(client, name, source, {**greedy, "stop": stop}))
            beams = {**greedy, "num_beams": 3, "stop": stop}
            answers[f"{source}, beams, {stop}"] = told(ask(client, name, source, beams))
    golden.check(f"stops/{name}", answers)


@pytest.mark.parametrize("name", MODELS)
def test_streams(client: httpx.Client, golden: Golden, name: str) -> None:
    greedy = {"num_beams": 1, "min_new_tokens": 9, "max_new_tokens": 12}
    text = ask(client, name, SOURCES[0], greedy)["generated_text"]
    cases: Mapping[str, Mapping[str, Any]] = {
        "greedy": greedy,
        "best tokens": {**greedy, "top_n_tokens": 1},
        "stopped": {**greedy, "stop": [text[3:5]]},
        "held back, and then not": {**greedy, "stop": [f"{text[3:6]}, never"]},
        "beams": {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8},
        "sampled": {"num_beams": 1, "max_new_tokens": 10, **SAMPLED},
        "gone on with": {**greedy, "decoder_input_text": "ba"},
    }
    streams = {}
    for case, parameters in cases.items():
        response = client.post("/generate_stream", json=body(name, SOURCES[0], parameters))
        assert response.status_code == 200, response.text
        streams[case] = told_of_stream(events_of(response))
    golden.check(f"streams/{name}", streams)


def told_of_stream(events: list[dict[str, Any]]) -> dict[str, Any]:
    *before, last = events
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert all(event["generated_text"] is None and event["details"] is None for event in before)
    shown: dict[str, Any] = {"text": last["generated_text"], **last["details"]}
    shown |= columns([event["token"] for event in events], "id", "text", "logprob", "special")
    if "top_tokens" in last:
        shown["top_tokens"] = [[each["id"] for each in event["top_tokens"]] for event in events]
    if "sequences" in last:
        shown["sequences"] = [[each["generated_text"], each["score"]] for each in last["sequences"]]
    return shown


@pytest.mark.parametrize("name", LANGUAGES)
def test_languages(client: httpx.Client, golden: Golden, name: str) -> None:
    source, target = LANGUAGES[name]
    asked = {
        "both": {"src_lang": source, "tgt_lang": target},
        "the source's": {"src_lang": source},
        "forced": {"forced_bos_token": target},
    }
    answers = {}
    for case, parameters in asked.items():
        response = client.post("/", json=body(name, SOURCES[0], {"num_beams": 1, **parameters}))
        assert response.status_code == 200, response.text
        (answers[case],) = [told(answer) for answer in response.json()]
    golden.check(f"languages/{name}", answers)
