"""Cases that schemathesis makes from `/openapi.json`, sent to a server whose answers are held to it."""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.schemas import APIOperation

OPEN = ("SpecDocument", "InfoDocument")  # they have more fields than they name
LOADED = ("tiny@dense", "tiny@pruned", "tiny")
LOADING = ("POST /models", "POST /models/{ref}/reload")
MOST_LOADS = 3


class Cases:
    """A server's operations, and what came of the cases that were sent to it."""

    def __init__(self, url: str, document: dict[str, Any], keys: tuple[str | None, ...]) -> None:
        """`keys`: the keys that callers may have, None for none; the first one may do everything."""
        document = copy.deepcopy(document)
        for name, schema in document["components"]["schemas"].items():
            if name.endswith("Document") and name not in OPEN:
                schema["additionalProperties"] = False  # so that what is sent and not described is found
        self._fields = set(_fields(document)) | {"the body", "model", "ref"}
        schema = schemathesis.openapi.from_dict(document)
        schema.config.update(base_url=url)
        self._operations: list[APIOperation[Any, Any, Any, Any]] = [
            each.ok()  # type: ignore[union-attr] # a faulty one fails here, as it should
            for each in schema.get_all_operations()
        ]
        self._keys = keys
        self._named: Counter[str] = Counter()
        self.outcomes: Counter[tuple[str, int]] = Counter()

    @property
    def sent(self) -> int:
        return self.outcomes.total()

    def run(self, examples: int, start: int) -> None:
        """Send so many cases to each operation that has any input, and one or two to the others."""
        for operation in self._operations:
            for mode in GenerationMode:
                if mode is GenerationMode.POSITIVE or operation.body:
                    self._run(operation, mode, examples, start)

    def _run(
        self, operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, examples: int, start: int
    ) -> None:
        @seed(start)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode), st.data())
        def send(case: Case[Any], data: st.DataObject) -> None:
            name = data.draw(st.sampled_from((None, *LOADED)))
            if name is not None and self._may_name(operation.label):
                _name(case, name)
            _wait(case)
            self._send(case, data.draw(st.sampled_from(self._keys)), named=name is not None)

        send()

    def _may_name(self, label: str) -> bool:
        """Loading a model takes seconds: not each of these cases may."""
        self._named[label] += 1
        return label not in LOADING or self._named[label] <= MOST_LOADS

    def _send(self, case: Case[Any], key: str | None, *, named: bool) -> None:
        case.headers.pop("Authorization", None)
        if key is not None:
            case.headers["Authorization"] = f"Bearer {key}"
        response = case.call(timeout=300)
        self.outcomes[case.operation.label, response.status_code] += 1
        excluded = ["positive_data_acceptance", "ignored_auth", "use_after_free", "ensure_resource_availability"]
        if named:
            excluded.append("negative_data_rejection")  # what was wrong may have been the name
        case.validate_response(response, excluded_checks=[_check(name) for name in excluded])
        assert response.status_code < 500
        if response.status_code in (400, 404, 422):
            self._check_named(response.json())
        if response.headers["content-type"][0].startswith("text/event-stream"):
            self._check_events(case, response.text)

    def _check_named(self, document: dict[str, Any]) -> None:
        """An error about what was sent names the field, or the body where it is none."""
        error = document["error"]
        text = error["message"] if isinstance(error, dict) else error
        assert text.isascii() or "\\" in json.dumps(text)
        named = any(re.match(rf"{re.escape(field)}\b", text) for field in self._fields)
        assert named or text.partition(" is not known: leave it out")[0] not in ("", text) or text.startswith("/"), text

    def _check_events(self, case: Case[Any], text: str) -> None:
        for line in text.splitlines():
            assert not line or line.startswith(("data:", ":")), line
            if line.startswith("data:") and line != "data: [DONE]":
                json.loads(line[len("data:") :])


def _check(name: str) -> CheckFunction:
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    check: Any = CHECKS.get_one(name)
    return cast("CheckFunction", check)


def _name(case: Case[Any], ref: str) -> None:
    """Let a case be about a model that is loaded: otherwise nearly all of them end at an unknown name."""
    parameters = case.path_parameters or {}
    if "ref" in parameters:
        parameters["ref"] = ref
    if "model" in parameters:
        parameters["model"] = "tiny"
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = ref
        if "models" in case.body:
            case.body["models"] = ["tiny@dense"]


def _wait(case: Case[Any]) -> None:
    """A model that still loads answers 503, as it must: these cases are not about that."""
    if case.query and "wait" in case.query:
        case.query["wait"] = "true"
    elif case.method.upper() == "POST" and case.path == "/models":
        case.query = {"wait": "true"}


def _fields(document: dict[str, Any]) -> Iterator[str]:
    for schema in document["components"]["schemas"].values():
        yield from schema.get("properties", {})
    for methods in document["paths"].values():
        for route in methods.values():
            yield from (parameter["name"] for parameter in route.get("parameters", ()))
