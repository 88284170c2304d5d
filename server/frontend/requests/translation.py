"""The body of `POST /translate`, as clients of LibreTranslate send it: JSON, or a form."""

from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from server.errors import InvalidInputError
from server.frontend.requests.parameters import RequestParameters
from server.frontend.requests.request import TextRequest, Texts

MOST_ALTERNATIVES = 8


def _number(value: object) -> object:
    """A form has only texts."""
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9 else value


class TranslateRequest(BaseModel):
    """The body of `/translate`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    q: Texts
    source: str
    target: str
    format: Literal["text", "html"] = "text"
    alternatives: Annotated[int, BeforeValidator(_number), Field(ge=0, le=MOST_ALTERNATIVES)] = 0
    api_key: str | None = None

    @property
    def fields(self) -> list[str]:
        """The name of each of `texts` in error messages."""
        return ["q"] if isinstance(self.q, str) else [f"q[{i}]" for i in range(len(self.q))]

    @property
    def texts(self) -> list[str]:
        """What is to be translated."""
        return [self.q] if isinstance(self.q, str) else self.q


class Translation(TextRequest):
    """Texts to be translated, in this server's own terms."""

    language: int | None = None  # the token of the sources' language; None for a model of one pair

    named: list[str]  # where each text came from

    @property
    def fields(self) -> list[str]:
        """The name of each text in error messages."""
        return self.named

    def alone(self, index: int) -> "Translation":
        """A request for one of the texts."""
        return self.model_copy(update={"inputs": self.texts[index], "named": [self.named[index]]})

    @property
    def source_language(self) -> int | None:
        """The token of the sources' language."""
        return self.language


def form_fields(body: bytes) -> dict[str, Any]:
    """The fields of a form.

    Raises:
        InvalidInputError: it is malformed, or has a field twice that may be there once.
    """
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, strict_parsing=bool(body), errors="strict")
    except ValueError as error:
        raise InvalidInputError(f"the body is not a form ({error}): send one, or JSON") from error
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name == "q" and "q" in fields:
            before = fields["q"]
            fields["q"] = [*before, value] if isinstance(before, list) else [before, value]
        elif name in fields:
            raise InvalidInputError(f"{name} is there twice: give it once")
        else:
            fields[name] = value
    return fields


def translation(
    texts: list[str], fields: list[str], parameters: dict[str, Any], source: int | None, target: int | None
) -> Translation:
    """A request for texts, which came from these fields, between two languages; tokens where the model has them."""
    given = parameters if target is None else parameters | {"forced_bos_token_id": target}
    return Translation(inputs=texts, parameters=RequestParameters(**given), language=source, named=fields)
