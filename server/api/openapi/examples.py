"""Examples of what routes take and give. The tests check each one against its schema."""

from typing import Any

from server.api.http.json_response import to_json

_NAMES = {"model": "titles", "variant": "pruned", "ref": "titles@pruned"}
_DENSE = {"model": "titles", "variant": "dense", "ref": "titles@dense"}
_SOURCE = "The council has agreed to rebuild the old harbour wall by next spring."
_TEXT = "Harbour wall to be rebuilt"
_DIGEST, _OLD = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "0a" * 32
_TIMINGS = {
    "queue_ms": 0.1,
    "encode_ms": 1.2,
    "decode_ms": 4.9,
    "total_ms": 6.2,
    "time_to_first_token_ms": 1.9,
    "time_per_output_token_ms": 0.8,
}
_TOKEN = {"id": 512, "text": "Harbour", "logprob": -0.31, "special": False}
_ENDED = {"finish_reason": "eos_token", "generated_tokens": 7, "seed": None, "input_length": 16}

GENERATE: dict[str, Any] = {
    "a text": {"inputs": _SOURCE, "model": "titles@pruned"},
    "a list": {"inputs": [_SOURCE, "A second text."], "parameters": {"max_new_tokens": 32}},
    "beams": {"inputs": _SOURCE, "parameters": {"num_beams": 4, "num_return_sequences": 2, "details": True}},
    "sampled": {"inputs": _SOURCE, "parameters": {"temperature": 0.8, "top_p": 0.95, "seed": 7, "stop": ["\n"]}},
    "split": {"inputs": _SOURCE, "parameters": {"split": "sentences"}},
}
STREAM: dict[str, Any] = {"a text": {"inputs": _SOURCE, "parameters": {"max_new_tokens": 32}}}
ANSWER: dict[str, Any] = {"generated_text": _TEXT, **_NAMES, "timings": _TIMINGS}
TASK: dict[str, Any] = {
    "a text": {"inputs": _SOURCE},
    "a summary": {"inputs": _SOURCE, "parameters": {"generate_parameters": {"num_beams": 4}}},
    "truncated": {"inputs": _SOURCE, "parameters": {"truncation": "longest_first"}},
}
TASK_ANSWER: dict[str, Any] = {**ANSWER, "summary_text": _TEXT, "translation_text": _TEXT}
COMPARE: dict[str, Any] = {
    "all variants of the first model": {"inputs": _SOURCE},
    "two variants": {"inputs": _SOURCE, "models": ["titles@dense", "titles@pruned"]},
}


def _compared(names: dict[str, str], text: str, speedup: float) -> dict[str, Any]:
    agreement = {"exact": speedup == 1, "rouge_l": 1.0 if speedup == 1 else 0.8333, "token_edit_distance": 0}
    ended = {"finish_reason": "eos_token", "generated_tokens": 7, "seed": None}
    return {**names, "generated_text": text, "timings": _TIMINGS, **ended, "speedup": speedup, "agreement": agreement}


COMPARISON: dict[str, Any] = {
    "baseline": "titles@dense",
    "results": [_compared(_DENSE, f"Old {_TEXT.lower()}", 1.0), _compared(_NAMES, _TEXT, 2.1)],
}
TOKENIZE: dict[str, Any] = {"a text": {"inputs": "The council", "model": "titles@pruned"}}
TOKENIZED: list[dict[str, Any]] = [
    {"id": 37, "text": "▁The", "start": 0, "stop": 3},
    {"id": 4309, "text": "▁council", "start": 3, "stop": 11},
    {"id": 1, "text": "</s>", "start": None, "stop": None},
]
COMPLETE: dict[str, Any] = {
    "a prompt": {"model": "titles@pruned", "prompt": _SOURCE, "max_tokens": 32},
    "token ids": {"prompt": [37, 4309, 1], "max_tokens": 32, "temperature": 0},
    "the best two of four": {"prompt": _SOURCE, "n": 2, "best_of": 4, "temperature": 0.8, "logprobs": 1},
}
_COMPLETION = {
    "id": "cmpl-1f0c7d2f",
    "object": "text_completion",
    "created": 1764400000,
    "model": "titles@pruned",
    "system_fingerprint": _DIGEST,
}
COMPLETION: dict[str, Any] = {
    **_COMPLETION,
    "choices": [{"text": _TEXT, "index": 0, "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 16, "completion_tokens": 7, "total_tokens": 23},
}
OPENAI_MODEL: dict[str, Any] = {"id": "titles@pruned", "object": "model", "created": 1764400000, "owned_by": "nash"}
TRANSLATE: dict[str, Any] = {
    "a text": {"q": "Good morning.", "source": "en", "target": "de"},
    "HTML, with another translation": {
        "q": ["<b>Good</b> morning."],
        "source": "en",
        "target": "de",
        "format": "html",
        "alternatives": 1,
    },
}
TRANSLATION: dict[str, Any] = {"translatedText": "Guten Morgen."}
LOAD: dict[str, Any] = {
    "by alias": {"model": "titles@pruned"},
    "with keys": {"model": "titles@pruned,dtype=int8,threads=2"},
    "pinned": {"model": f"titles@sha256:{_DIGEST}"},
}
RELOAD: dict[str, Any] = {"with other keys": {"keys": "dtype=int8,threads=2"}}
SWAPPED: dict[str, Any] = {"ref": "titles@pruned", "old": _OLD, "new": _DIGEST}
DIVIDE: dict[str, Any] = {
    "a tenth to the pruned variant": {"weights": {"dense": 90, "pruned": 10}},
    "compared in its shadow": {"weights": {}, "shadow": {"from": "dense", "to": "pruned", "fraction": 0.05}},
}
TRAFFIC: dict[str, Any] = {
    "model": "titles",
    "weights": {"dense": 90.0, "pruned": 10.0},
    "shadow": {"from": "dense", "to": "pruned", "fraction": 0.05},
    "seen": {"pairs": 214, "agreement": {"exact": 190, "close": 12, "different": 12}, "speedup": 2.08},
}
INFO: dict[str, Any] = {
    "model_id": "titles@dense",
    "model_sha": _OLD,
    "model_dtype": "float32",
    "max_concurrent_requests": 288,
    "max_input_tokens": 512,
    "max_total_tokens": 768,
    "max_client_batch_size": 64,
    "router": "nash",
    "version": "0.1.0",
    "models": ["titles@dense", "titles@pruned"],
}


def model(state: str) -> dict[str, Any]:
    """A row of `GET /models`."""
    return {
        **_NAMES,
        "digest": _DIGEST,
        "state": state,
        "dtype": "float32",
        "dtype_why": "asked for",
        "engine": "native-avx512",
        "memory_bytes": 13_000_000 if state == "ready" else None,
        "spec": {
            "width": 512,
            "encoder_layers": 6,
            "decoder_layers": 2,
            "encoder_sparsity": 0.3,
            "parameters": 3_050_000,
            "kind": "pruned",
        },
    }


CARD: dict[str, Any] = {
    **model("ready"),
    "version": 2,
    "aliases": ["pruned"],
    "created_at": "2026-11-29T16:06:12+00:00",
    "bytes": 6_120_000,
    "weights_dtype": "float16",
    "licence": "apache-2.0",
    "lineage": {
        "parent": _OLD,
        "parent_ref": "titles@dense",
        "data": {"train": _DIGEST},
        "seed": 0,
        "code_version": "0.1.0",
        "precision": {"final_training": "bfloat16"},
        "trained_from": None,
    },
    "quality": {
        "metrics": {"rougeL": 38.2},
        "measured_on": {"split": "test", "rows": 2000},
        "records": [
            {
                "metric": "rougeL",
                "value": 38.1,
                "lower_is_better": False,
                "dtype": "int8",
                "engine": "native-avx512",
                "split": "test",
                "rows": 2000,
            }
        ],
    },
    "latency": [
        {
            "dtype": "int8",
            "engine": "native-avx512",
            "device": "cpu",
            "processor": "AMD EPYC",
            "threads": 2,
            "batch": 1,
            "source_tokens": 64,
            "new_tokens": 16,
            "encode_ms": 2.1,
            "step_ms": 0.4,
            "total_ms": 8.5,
            "at": "2026-11-29T16:09:40+00:00",
        }
    ],
}
STATS: dict[str, Any] = {
    "models": [
        {
            **_NAMES,
            "state": "ready",
            "slots": 32,
            "running": 3,
            "waiting": 0,
            "cache_used_ratio": 0.09,
            "outcomes": {
                "ok": 5120,
                "client_error": 3,
                "rejected": 0,
                "timeout": 0,
                "cancelled": 11,
                "error": 0,
            },
            "last_minute": {"answers": 240, "per_s": 4.0, "p50_ms": 9.1, "p95_ms": 14.8},
        }
    ]
}


def ready(state: str) -> dict[str, Any]:
    """Whether requests can be taken."""
    return {"ready": state == "ready", "models": [{"ref": "titles@dense", "state": state}]}


def _events(*documents: dict[str, Any]) -> str:
    return "".join(f"data:{to_json(each).decode()}\n\n" for each in documents)


TOKENS = _events(
    {"index": 1, "token": _TOKEN, "generated_text": None, "details": None},
    {
        "index": 7,
        "token": {"id": 1, "text": "", "logprob": -0.02, "special": True},
        "generated_text": _TEXT,
        "details": _ENDED,
        **_NAMES,
        "timings": _TIMINGS,
    },
)
COMPARED = _events({**_DENSE, "index": 1, "at_ms": 1.9, "token": _TOKEN}, COMPARISON)
COMPLETED = (
    _events({**_COMPLETION, "choices": [{"text": "Harbour", "index": 0, "logprobs": None, "finish_reason": None}]})
    + "data: [DONE]\n\n"
)
