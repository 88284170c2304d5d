"""The `openai` package against the server, unmodified."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.running_server import RunningServer


@pytest.fixture
def client_of_openai(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as made:
        yield made


def plain(client: httpx.Client, text: str, **parameters: Any) -> dict[str, Any]:
    body = {"inputs": text, "parameters": {"details": True, **parameters}, "model": "tiny@dense"}
    answer: dict[str, Any] = client.post("/generate", json=body).json()
    return answer


def test_models(client_of_openai: openai.OpenAI) -> None:
    listed = client_of_openai.models.list().data
    assert [(each.id, each.object) for each in listed] == [("tiny@dense", "model"), ("tiny@pruned", "model")]
    assert client_of_openai.models.retrieve("tiny@dense") == listed[0]
    with pytest.raises(openai.NotFoundError, match="'tiny@other' is not loaded"):
        client_of_openai.models.retrieve("tiny@other")


def test_a_completion_is_what_generate_gives(client_of_openai: openai.OpenAI, client: httpx.Client) -> None:
    answer = client_of_openai.completions.create(model="tiny@dense", prompt="abc", max_tokens=12, temperature=0)
    other = plain(client, "abc", max_new_tokens=12)
    [choice] = answer.choices
    assert (choice.text, choice.index, choice.logprobs) == (other["generated_text"], 0, None)
    assert choice.finish_reason == ("length" if other["details"]["finish_reason"] == "length" else "stop")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == other["details"]["input_length"]
    assert answer.usage.completion_tokens == other["details"]["generated_tokens"]
    assert (answer.model, answer.object) == ("tiny@dense", "text_completion")


@pytest.mark.parametrize("prompt", [["abc", "de"], [[3, 4, 5], [6, 7]]])
def test_several_prompts(prompt: Any, client_of_openai: openai.OpenAI, client: httpx.Client) -> None:
    answer = client_of_openai.completions.create(model="tiny", prompt=prompt, max_tokens=6)
    assert [choice.index for choice in answer.choices] == [0, 1]
    alone = [plain(client, text, max_new_tokens=6)["generated_text"] for text in ("abc", "de")]
    assert [choice.text for choice in answer.choices] == alone


def test_token_ids_are_a_prompt(client_of_openai: openai.OpenAI) -> None:
    answers = [
        client_of_openai.completions.create(model="tiny", prompt=prompt, max_tokens=6).choices[0].text
        for prompt in ("abc", [3, 4, 5], [3, 4, 5, 1])
    ]
    assert answers[0] == answers[1] == answers[2]


def test_beams_and_samples(client_of_openai: openai.OpenAI, client: httpx.Client) -> None:
    beams = client_of_openai.completions.create(
        model="tiny", prompt="abc", max_tokens=6, n=2, best_of=4, extra_body={"use_beam_search": True}
    )
    other = plain(client, "abc", max_new_tokens=6, num_beams=4, num_return_sequences=2)
    assert [choice.text for choice in beams.choices] == [each["generated_text"] for each in other["sequences"]]
    samples = [
        client_of_openai.completions.create(model="tiny", prompt="abc", max_tokens=6, n=3, temperature=1.5, seed=7)
        for _ in range(2)
    ]
    assert [each.text for each in samples[0].choices] == [each.text for each in samples[1].choices]
    assert len(samples[0].choices) == 3


def test_logprobs(client_of_openai: openai.OpenAI, client: httpx.Client) -> None:
    [choice] = client_of_openai.completions.create(model="tiny", prompt="abc", max_tokens=6, logprobs=3).choices
    assert choice.logprobs is not None
    tokens = [each for each in plain(client, "abc", max_new_tokens=6)["details"]["tokens"] if not each["special"]]
    assert choice.logprobs.tokens == [each["text"] for each in tokens]
    assert choice.logprobs.token_logprobs == [each["logprob"] for each in tokens]
    assert choice.logprobs.text_offset is not None
    assert choice.logprobs.top_logprobs is not None
    for token, offset, top in zip(
        choice.logprobs.tokens, choice.logprobs.text_offset, choice.logprobs.top_logprobs, strict=True
    ):
        assert choice.text[offset : offset + len(token)] == token
        assert 1 <= len(top) <= 3  # several tokens may have one text


def test_streams(client_of_openai: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": "tiny", "prompt": ["abc", "de"], "max_tokens": 6, "logprobs": 1}
    whole = client_of_openai.completions.create(**arguments)
    events = list(client_of_openai.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    assert events[-1].choices == []
    assert events[-1].usage == whole.usage
    for choice in whole.choices:
        own = [each for event in events for each in event.choices if each.index == choice.index]
        assert "".join(each.text for each in own) == choice.text
        assert [each.finish_reason for each in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1].finish_reason == choice.finish_reason
        assert choice.logprobs is not None
        offsets = [offset for each in own if each.logprobs for offset in each.logprobs.text_offset or []]
        assert offsets == choice.logprobs.text_offset
    several = list(client_of_openai.completions.create(model="tiny", prompt="abc", n=2, temperature=1, stream=True))
    assert sorted(each.index for event in several for each in event.choices) == [0, 1]


def test_a_stop_string_ends_the_text(client_of_openai: openai.OpenAI, client: httpx.Client) -> None:
    text = plain(client, "abc", max_new_tokens=12)["generated_text"]
    stop = text[3:5]
    for streamed in (False, True):
        answer: Any = client_of_openai.completions.create(
            model="tiny@dense", prompt="abc", max_tokens=12, stop=stop, stream=streamed
        )
        choices = [each for event in answer for each in event.choices] if streamed else answer.choices
        assert "".join(each.text for each in choices) == text[: text.index(stop)]
        assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("arguments", "error", "param", "message"),
    [
        (
            {"max_tokens": 0},
            openai.BadRequestError,
            "max_tokens",
            "max_tokens is 0: should be greater than or equal to 1",
        ),
        ({"max_tokens": 100_000}, openai.BadRequestError, "max_tokens", "max_tokens is 100000"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "temperature"),
        ({"prompt": ""}, openai.BadRequestError, "prompt", "prompt is empty"),
        ({"prompt": [[3], [10**6]]}, openai.BadRequestError, "prompt", "outside the vocabulary"),
        ({"prompt": ["a", 3]}, openai.BadRequestError, "prompt", "prompt is a number at index 1"),
        ({"suffix": "x"}, openai.BadRequestError, "suffix", "is not available here"),
        ({"echo": True}, openai.BadRequestError, "echo", "is not available here"),
        ({"n": 2, "best_of": 1}, openai.BadRequestError, "best_of", "best_of is 1, less than n"),
        ({"n": 2}, openai.BadRequestError, "n", "n is 2"),
        ({"extra_body": {"colour": 1}}, openai.BadRequestError, "colour", "colour is not known"),
        ({"model": "other"}, openai.NotFoundError, None, "'other' is not loaded"),
    ],
)
def test_refusals_have_their_shape(
    arguments: dict[str, Any],
    error: type[openai.APIStatusError],
    param: str | None,
    message: str,
    client_of_openai: openai.OpenAI,
) -> None:
    given: dict[str, Any] = {"model": "tiny", "prompt": "abc", **arguments}
    with pytest.raises(error, match=message) as raised:
        client_of_openai.completions.create(**given)
    assert raised.value.param == param
    assert raised.value.request_id
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"message", "type", "param", "code"}


def test_best_of_cannot_stream(client_of_openai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="best_of is more than n, which cannot stream"):
        client_of_openai.completions.create(model="tiny", prompt="abc", best_of=2, temperature=1, stream=True)


def test_asynchronous_calls_and_retries(server: RunningServer) -> None:
    """More than the queue holds: the client comes back when it is told to."""

    async def scenario() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=8) as client:
            calls = (client.completions.create(model="tiny@dense", prompt=["abc"] * 16, max_tokens=1) for _ in range(3))
            return [choice.text for answer in await asyncio.gather(*calls) for choice in answer.choices]

    texts = asyncio.run(scenario())
    assert len(texts) == 48
    assert len(set(texts)) == 1


def test_tokenize(client: httpx.Client) -> None:
    [first, second] = client.post("/tokenize", json={"inputs": ["abc", "d"]}).json()
    assert [each["text"] for each in first] == ["a", "b", "c", "</s>"]
    assert [(each["id"], each["start"], each["stop"]) for each in first[:3]] == [(3, 0, 1), (4, 1, 2), (5, 2, 3)]
    assert client.post("/tokenize", json={"inputs": "d", "model": "tiny@pruned"}).json() == second
    refused = client.post("/tokenize", json={"inputs": "a" * 10_000})
    assert (refused.status_code, "has 10000 characters" in refused.json()["error"]) == (422, True)
