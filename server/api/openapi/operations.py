"""What each route takes, gives and refuses, in one table. The words about a route are those of its function."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from server.api.http.keys import Scope
from server.api.openapi import answers, examples, model_answers
from server.frontend.requests.completion import CompletionRequest
from server.frontend.requests.request import (
    CompareRequest,
    GenerateRequest,
    LoadRequest,
    ReloadRequest,
    TaskRequest,
    TokenizeRequest,
    TrafficRequest,
)
from server.frontend.requests.translation import TranslateRequest

_BODY = (413, 422, 429, 503)  # too long, not what the schema says; too many at once; shutting down
_RUNNING = (404, *_BODY, 424, 504, 507)  # what may also happen to a request that a model has to answer
_CHANGING = (404, 409, *_BODY, 507)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path."""

    group: str
    answers: Mapping[int, tuple[Any, Any]] = field(default_factory=dict)  # by status the JSON's type, and an example
    events: tuple[Any, str] | None = None  # the type of what a stream's events hold, and an example of a stream
    text: tuple[str, str] | None = None  # the media type of an answer that is neither, and an example
    refuses: tuple[int, ...] = ()
    scope: Scope | None = Scope.INFER  # of the key that it needs where there are keys
    body: type[BaseModel] | None = None
    body_needed: bool = True
    form: bool = False  # whether the body may also be a form
    bodies: Mapping[str, Any] = field(default_factory=dict)  # examples by what they show


_GENERATE, _MODELS, _CONTROL, _WATCH = "Generate", "Models", "Change what is served", "Watch"
_OPENAI, _TRANSLATE = "OpenAI", "LibreTranslate"

OPERATIONS: Mapping[str, Operation] = {
    "POST /generate": Operation(
        group=_GENERATE,
        body=GenerateRequest,
        bodies=examples.GENERATE,
        answers={200: (answers.AnswerDocument | list[answers.AnswerDocument], examples.ANSWER)},
        events=(answers.TokenEventDocument, examples.TOKENS),
        refuses=_RUNNING,
    ),
    "POST /generate_stream": Operation(
        group=_GENERATE,
        body=GenerateRequest,
        bodies=examples.STREAM,
        events=(answers.TokenEventDocument, examples.TOKENS),
        refuses=_RUNNING,
    ),
    "POST /": Operation(
        group=_GENERATE,
        body=TaskRequest,
        bodies=examples.TASK,
        answers={200: (list[answers.TaskAnswerDocument], [examples.TASK_ANSWER])},
        events=(answers.TokenEventDocument, examples.TOKENS),
        refuses=_RUNNING,
    ),
    "POST /models/{ref}": Operation(
        group=_GENERATE,
        body=TaskRequest,
        bodies=examples.TASK,
        answers={200: (list[answers.TaskAnswerDocument], [examples.TASK_ANSWER])},
        events=(answers.TokenEventDocument, examples.TOKENS),
        refuses=_RUNNING,
    ),
    "POST /compare": Operation(
        group=_GENERATE,
        body=CompareRequest,
        bodies=examples.COMPARE,
        answers={200: (answers.ComparisonDocument, examples.COMPARISON)},
        events=(answers.ComparedEventDocument, examples.COMPARED),
        refuses=_RUNNING,
    ),
    "POST /tokenize": Operation(
        group=_GENERATE,
        body=TokenizeRequest,
        bodies=examples.TOKENIZE,
        answers={200: (list[answers.TokenizedDocument] | list[list[answers.TokenizedDocument]], examples.TOKENIZED)},
        refuses=(404, *_BODY),
    ),
    "POST /v1/completions": Operation(
        group=_OPENAI,
        body=CompletionRequest,
        bodies=examples.COMPLETE,
        answers={200: (answers.CompletionDocument, examples.COMPLETION)},
        events=(answers.CompletionEventDocument, examples.COMPLETED),
        refuses=_RUNNING,
    ),
    "GET /v1/models": Operation(
        group=_OPENAI,
        answers={200: (answers.OpenAIModelsDocument, {"object": "list", "data": [examples.OPENAI_MODEL]})},
    ),
    "GET /v1/models/{ref}": Operation(
        group=_OPENAI,
        answers={200: (answers.OpenAIModelDocument, examples.OPENAI_MODEL)},
        refuses=(404, 422),
    ),
    "POST /translate": Operation(
        group=_TRANSLATE,
        body=TranslateRequest,
        form=True,
        bodies=examples.TRANSLATE,
        answers={200: (answers.TranslationDocument, examples.TRANSLATION)},
        refuses=_RUNNING,
    ),
    "GET /languages": Operation(
        group=_TRANSLATE,
        answers={200: (list[answers.LanguageDocument], [{"code": "en", "name": "English", "targets": ["de"]}])},
    ),
    "GET /models": Operation(group=_MODELS, answers={200: (list[answers.ModelDocument], [examples.model("ready")])}),
    "GET /models/{ref}": Operation(
        group=_MODELS, answers={200: (model_answers.CardDocument, examples.CARD)}, refuses=(404, 422)
    ),
    "GET /stats": Operation(group=_WATCH, answers={200: (model_answers.StatsDocument, examples.STATS)}),
    "GET /info": Operation(group=_MODELS, answers={200: (answers.InfoDocument, examples.INFO)}),
    "POST /models": Operation(
        group=_CONTROL,
        scope=Scope.ADMIN,
        body=LoadRequest,
        bodies=examples.LOAD,
        answers={
            201: (answers.ModelDocument, examples.model("ready")),
            202: (answers.ModelDocument, examples.model("loading")),
        },
        refuses=_CHANGING,
    ),
    "DELETE /models/{ref}": Operation(
        group=_CONTROL,
        scope=Scope.ADMIN,
        answers={202: (answers.ModelDocument, examples.model("draining"))},
        refuses=(404, 409),
    ),
    "POST /models/{ref}/swap": Operation(
        group=_CONTROL,
        scope=Scope.ADMIN,
        answers={200: (answers.SwapDocument, examples.SWAPPED)},
        refuses=(404, 409, 422, 503, 507),
    ),
    "POST /models/{ref}/reload": Operation(
        group=_CONTROL,
        scope=Scope.ADMIN,
        body=ReloadRequest,
        body_needed=False,
        bodies=examples.RELOAD,
        answers={200: (answers.ModelDocument, examples.model("ready"))},
        refuses=_CHANGING,
    ),
    "GET /models/{model}/traffic": Operation(
        group=_CONTROL, answers={200: (answers.TrafficDocument, examples.TRAFFIC)}, refuses=(404,)
    ),
    "PUT /models/{model}/traffic": Operation(
        group=_CONTROL,
        scope=Scope.ADMIN,
        body=TrafficRequest,
        bodies=examples.DIVIDE,
        answers={200: (answers.TrafficDocument, examples.TRAFFIC)},
        refuses=(404, 413, 422, 429),
    ),
    "GET /health": Operation(group=_WATCH, scope=None, answers={200: (answers.HealthDocument, {"status": "ok"})}),
    "GET /health/ready": Operation(
        group=_WATCH,
        scope=None,
        answers={
            200: (answers.ReadyDocument, examples.ready("ready")),
            503: (answers.ReadyDocument, examples.ready("loading")),
        },
    ),
    "GET /metrics": Operation(
        group=_WATCH, text=("text/plain", 'nash_requests_running{model="titles",variant="dense"} 0.0\n')
    ),
}
