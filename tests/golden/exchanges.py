"""What the wire tests send to a server with `t5@dense` and `t5@pruned`, keys, and small limits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

KEY, ADMIN_KEY = "an ordinary key", "the operator's key"
CONFIG = """
max_body_bytes = 5000
max_batch_items = 6
max_queue = 0
queue_s = 60
total_s = 100.0
keep_alive_s = 30
drain_s = 1.5
"""

TEXT = "a small step"
SHORT = {"max_new_tokens": 4}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One request. `headers` go on top of the key's; None takes one away."""

    path: str
    method: str = "POST"
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)


def get(path: str, **headers: str | None) -> Exchange:
    return Exchange(path=path, method="GET", headers=headers)


def generate(inputs: Any = TEXT, path: str = "/generate", **fields: Any) -> Exchange:
    return Exchange(path=path, json={"inputs": inputs, **fields})


def asking(parameters: Mapping[str, Any], path: str = "/generate", inputs: Any = TEXT) -> Exchange:
    return generate(inputs, path, parameters={**SHORT, **parameters})


WATCHING: Mapping[str, Exchange] = {
    "health": get("/health"),
    "health, HEAD": Exchange(path="/health", method="HEAD"),
    "ready": get("/health/ready"),
    "models": get("/models"),
    "info": get("/info"),
    "a request's own id": get("/health", **{"x-request-id": "mine-1"}),
    "health without a key": get("/health", authorization=None),
    "the page": get("/", authorization=None),
    "the page's style": get("/page/base.css", authorization=None),
    "the page's script": get("/page/page.js", authorization=None),
    "the page's icon": get("/page/icon.svg", authorization=None),
    "models by the operator": get("/models", authorization=f"Bearer {ADMIN_KEY}"),
}

GENERATING: Mapping[str, Exchange] = {
    "one text": generate(parameters=SHORT),
    "one token": asking({"max_new_tokens": 1}),
    "by name": generate(model="t5@pruned", parameters=SHORT),
    "by version": generate(model="t5:2", parameters=SHORT),
    "by version with zeros": generate(model="t5:002", parameters=SHORT),
    "by family": generate(model="t5", parameters=SHORT),
    "nulls": generate(model=None, stream=None, parameters={"temperature": None, "stop": None, **SHORT}),
    "a list": generate([TEXT, "zebra"], parameters=SHORT),
    "a list of one": generate([TEXT], parameters=SHORT),
    "details": asking({"details": True}),
    "details with best tokens": asking({"details": True, "top_n_tokens": 2}),
    "best tokens without details": asking({"top_n_tokens": 2}),
    "samples": asking({"temperature": 0.9, "seed": 3, "details": True}),
    "sampling switched off": asking({"temperature": 0.9, "do_sample": False, "details": True}),
    "several": asking({"num_beams": 3, "num_return_sequences": 2}),
    "several with details": asking({"num_beams": 2, "best_of": 2, "details": True}),
    "a stop string": asking({"stop": ["a", "e", "i", "o", "u"], "max_new_tokens": 20, "details": True}),
    "what changes nothing": asking({"return_full_text": True, "decoder_input_details": True, "watermark": False}),
    "for a task": asking({}, path="/"),
    "for a task with details": asking({"details": True}, path="/"),
    "for a task, a level down": generate(
        path="/",
        parameters={"generate_parameters": SHORT, "truncation": "longest_first", "clean_up_tokenization_spaces": True},
    ),
    "for a task, too long a text": generate("ab " * 40, path="/", parameters={"truncation": "only_first", **SHORT}),
    "for a task, a list": asking({}, path="/", inputs=[TEXT, "zebra"]),
    "by the operator": Exchange(
        path="/generate",
        json={"inputs": TEXT, "parameters": SHORT},
        headers={"authorization": f"Bearer {ADMIN_KEY}", "x-request-id": "mine-2"},
    ),
    "a text that is no ASCII": asking({}, inputs="z\u00e9bra \u2028"),
}

STREAMING: Mapping[str, Exchange] = {
    "stream": asking({}, path="/generate_stream"),
    "stream of one token": asking({"max_new_tokens": 1, "top_n_tokens": 1}, path="/generate_stream"),
    "stream, asked for": generate(stream=True, parameters=SHORT),
    "stream for a task": generate(path="/", stream=True, parameters=SHORT),
    "stream of beams": asking({"num_beams": 2, "num_return_sequences": 2}, path="/generate_stream"),
    "stream of samples": asking({"top_k": 5, "seed": 4}, path="/generate_stream"),
}

COMPARING: Mapping[str, Exchange] = {
    "all": Exchange(path="/compare", json={"inputs": TEXT, "parameters": SHORT}),
    "one of them": Exchange(path="/compare", json={"inputs": TEXT, "parameters": SHORT, "models": ["t5@pruned"]}),
    "in another order, one twice": Exchange(
        path="/compare", json={"inputs": TEXT, "parameters": SHORT, "models": ["t5:2", "t5@dense", "t5"]}
    ),
    "details": Exchange(path="/compare", json={"inputs": "zebra", "parameters": {"details": True, **SHORT}}),
    "several": Exchange(
        path="/compare",
        json={"inputs": TEXT, "parameters": {"num_beams": 2, "num_return_sequences": 2, **SHORT}},
    ),
    "samples": Exchange(path="/compare", json={"inputs": TEXT, "parameters": {"top_k": 3, "seed": 5, **SHORT}}),
    "stream": Exchange(path="/compare", json={"inputs": TEXT, "stream": True, "parameters": {"max_new_tokens": 2}}),
}

REFUSED: Mapping[str, Exchange] = {
    "no such path": get("/nothing"),
    "no such file of the page": get("/page/nothing.js"),
    "another method": get("/generate"),
    "another method still": Exchange(path="/models", method="DELETE"),
    "no JSON": Exchange(path="/generate", content=b"{"),
    "no object": Exchange(path="/generate", content=b"[]"),
    "empty": Exchange(path="/generate", content=b""),
    "no inputs": Exchange(path="/generate", json={}),
    "an empty text": generate(""),
    "an empty list": generate([]),
    "a number": generate(1),
    "a number in a list": generate(["a", 1]),
    "an empty text in a list": generate(["a", ""]),
    "an unknown key": generate(input="a"),
    "an unknown parameter": asking({"temprature": 1.0}),
    "a parameter of another type": asking({"max_new_tokens": "4"}),
    "no temperature": asking({"temperature": 0}),
    "too small a temperature": asking({"temperature": 1e-40}),
    "too much mass": asking({"top_p": 1.5}),
    "a negative number": asking({"top_k": -1}),
    "no tokens": asking({"max_new_tokens": 0}),
    "too many tokens": asking({"max_new_tokens": 1000}),
    "more at least than at most": asking({"min_new_tokens": 9}),
    "too many beams": asking({"num_beams": 100}),
    "more answers than beams": asking({"num_beams": 2, "num_return_sequences": 3}),
    "several greedy answers": asking({"best_of": 2}),
    "two names for one thing": asking({"best_of": 2, "num_return_sequences": 2}),
    "two tokens forced": asking({"forced_bos_token": "a", "forced_bos_token_id": 3}),
    "no such token": asking({"forced_bos_token": "never"}),
    "a token beyond the vocabulary": asking({"forced_bos_token_id": 1000}),
    "too large a seed": asking({"seed": 2**64}),
    "early, but how": asking({"early_stopping": "soon"}),
    "too many stops": asking({"stop": ["a"] * 17}),
    "an empty stop": asking({"stop": [""]}),
    "not available": asking({"watermark": True}),
    "a language": asking({"src_lang": "en"}, path="/"),
    "an unknown truncation": asking({"truncation": "some"}, path="/"),
    "a task's parameter elsewhere": asking({"truncation": "only_first"}),
    "too long a prefix": asking({"decoder_input_text": "a" * 60}),
    "too long a text": generate("a" * 100),
    "too many texts": generate(["a"] * 7),
    "more texts than there is room for": generate(["a"] * 5, parameters=SHORT),
    "too large": generate("a" * 6000),
    "no such model": generate(model="t6@dense"),
    "no such variant": generate(model="t5@small"),
    "no such version": generate(model="t5:3"),
    "no name": generate(model="T5"),
    "no version": generate(model="t5:0"),
    "a list that streams": generate(["a", "b"], path="/generate_stream"),
    "an error before a stream": generate("", path="/generate_stream"),
    "a comparison with nothing": Exchange(path="/compare", json={"inputs": TEXT, "models": []}),
    "a comparison with what is not there": Exchange(path="/compare", json={"inputs": TEXT, "models": ["t5@small"]}),
    "a comparison of a list": Exchange(path="/compare", json={"inputs": [TEXT]}),
    "an error before a streamed comparison": Exchange(path="/compare", json={"inputs": "", "stream": True}),
    "no key": Exchange(path="/generate", json={"inputs": TEXT}, headers={"authorization": None}),
    "no key for the metrics": get("/metrics", authorization=None),
    "no key for the models": get("/models", authorization=None),
    "another key": Exchange(path="/generate", json={"inputs": TEXT}, headers={"authorization": "Bearer other"}),
    "no bearer": Exchange(path="/generate", json={"inputs": TEXT}, headers={"authorization": f"Basic {KEY}"}),
    "another host": get("/health", host="example.com"),
    "another origin": Exchange(path="/generate", json={"inputs": TEXT}, headers={"origin": "http://example.com"}),
}

# However it is said, the text of these errors names what was wrong.
NAMED: Mapping[str, str] = {
    "no such path": "/nothing",
    "no inputs": "inputs",
    "an empty text": "inputs",
    "a number in a list": "index 1",
    "an empty text in a list": "inputs[1]",
    "an unknown key": "input",
    "an unknown parameter": "parameters.temprature",
    "a parameter of another type": "parameters.max_new_tokens",
    "no temperature": "parameters.temperature",
    "too small a temperature": "parameters.temperature",
    "too much mass": "parameters.top_p",
    "a negative number": "parameters.top_k",
    "no tokens": "parameters.max_new_tokens",
    "too many tokens": "parameters.max_new_tokens",
    "more at least than at most": "parameters.min_new_tokens",
    "too many beams": "parameters.num_beams",
    "more answers than beams": "num_return_sequences",
    "several greedy answers": "best_of",
    "two names for one thing": "best_of",
    "two tokens forced": "forced_bos_token and forced_bos_token_id",
    "no such token": "parameters.forced_bos_token",
    "a token beyond the vocabulary": "parameters.forced_bos_token_id",
    "too large a seed": "parameters.seed",
    "early, but how": "parameters.early_stopping",
    "too many stops": "parameters.stop",
    "an empty stop": "parameters.stop[0]",
    "not available": "parameters.watermark",
    "a language": "parameters.src_lang",
    "an unknown truncation": "parameters.truncation",
    "a task's parameter elsewhere": "parameters.truncation",
    "too long a prefix": "decoder_input_text",
    "too many texts": "inputs",
    "no such model": "t6@dense",
    "a comparison with nothing": "models",
    "a comparison of a list": "inputs",
    "another host": "example.com",
    "another origin": "http://example.com",
}


def content_of(exchange: Exchange) -> bytes | None:
    """The bytes that are sent."""
    return exchange.content if exchange.json is None else json.dumps(exchange.json).encode()
