"""A client of LibreTranslate against the server, unmodified; and what its page says beyond that client."""

import hashlib
import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from libretranslatepy import LibreTranslateAPI

from server.text.languages import Languages
from server.text.markup import Markup
from tests.api.test_inference_client import build_family
from tests.running_server import RunningServer


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mBART, of two languages; BART, of none; a model of one pair, as Marian's tokenizers say it."""
    folder = tmp_path_factory.mktemp("families")
    build_family(folder, "mbart", "$A </s> en_XX")
    pair = build_family(folder, "bart", "<s> $A </s>")
    (pair / "tokenizer_config.json").write_text(json.dumps({"source_lang": "en", "target_lang": "de"}))
    return folder


@pytest.fixture(scope="module")
def translating(families: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"infer {hashlib.sha256(b'secret').hexdigest()}\n")
    options = "threads=1,slots=8,max_source_tokens=32,max_new_tokens=32"
    models = ("--model", f"{families / 'mbart'},{options}", "--model", f"{families / 'bart'},{options}")
    with RunningServer(*models, "--api-keys", str(keys)) as running:
        yield running


@pytest.fixture
def http(translating: RunningServer) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer secret"}
    with httpx.Client(base_url=translating.url, timeout=60, headers=headers) as client:
        yield client


def directly(http: httpx.Client, text: str, source: str, target: str) -> str:
    parameters = {"src_lang": f"{source}_XX", "tgt_lang": f"{target}_XX"}
    answer = http.post("/", json={"inputs": text, "parameters": parameters, "model": "mbart"})
    return str(answer.json()[0]["translation_text"])


def test_its_client(translating: RunningServer, http: httpx.Client) -> None:
    client = LibreTranslateAPI(translating.url, api_key="secret")
    assert client.translate("hello", "en", "fr") == directly(http, "hello", "en", "fr")
    assert client.translate("hello", "fr", "en") == directly(http, "hello", "fr", "en")
    own = http.post("/generate", json={"inputs": "hello", "model": "bart"}).json()["generated_text"]
    assert client.translate("hello", "en", "de") == own
    with pytest.raises(urllib.error.HTTPError, match="400"):
        client.translate("hello", "en", "es")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        LibreTranslateAPI(translating.url, api_key="other").translate("hello", "en", "fr")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        LibreTranslateAPI(translating.url).translate("hello", "en", "fr")


def test_languages(http: httpx.Client) -> None:
    assert http.get("/languages").json() == [
        {"code": "en", "name": "English", "targets": ["de", "fr"]},
        {"code": "fr", "name": "French", "targets": ["en"]},
    ]


def test_arrays_and_alternatives(http: httpx.Client) -> None:
    body: dict[str, Any] = {"q": ["hello", " ", "abc"], "source": "en", "target": "fr", "alternatives": 2}
    document = http.post("/translate", json=body).json()
    assert len(document["translatedText"]) == len(document["alternatives"]) == 3
    assert document["translatedText"][1] == " "
    assert document["alternatives"][0]
    assert all(text not in document["alternatives"][0] for text in document["translatedText"][:1])
    one = http.post("/translate", json=body | {"q": "hello"}).json()
    assert one == {"translatedText": document["translatedText"][0], "alternatives": document["alternatives"][0]}
    form = http.post("/translate", data={"q": ["hello", "abc"], "source": "en", "target": "fr"}).json()
    assert form["translatedText"] == [directly(http, text, "en", "fr") for text in ("hello", "abc")]


def test_tags_are_kept(http: httpx.Client) -> None:
    text = '<p class="x">\n hello <b>abc</b><!-- no --> </p><script>hello</script>'
    body = {"q": text, "source": "en", "target": "fr", "format": "html"}
    hello, abc = (directly(http, each, "en", "fr") for each in ("hello", "abc"))
    expected = f'<p class="x">\n {hello} <b>{abc}</b><!-- no --> </p><script>hello</script>'
    assert http.post("/translate", json=body).json() == {"translatedText": expected}
    assert http.post("/translate", json=body | {"q": "<br>"}).json() == {"translatedText": "<br>"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"source": "auto"}, "no language is detected here"),
        ({"target": "es"}, "'en' cannot be translated to 'es': the sources are en, fr"),
        ({"source": "x" * 500}, "cannot be translated"),
        ({"format": "pdf"}, "format"),
        ({"alternatives": 99}, "alternatives is 99"),
        ({"q": []}, "q is an empty list"),
        ({"q": ["hello", 3]}, "q is a number at index 1"),
        ({"q": "a" * 200}, "q has 202 tokens"),
        ({"colour": 1}, "colour is not known"),
    ],
)
def test_refusals_have_its_shape(body: dict[str, Any], told: str, http: httpx.Client) -> None:
    answer = http.post("/translate", json={"q": "hello", "source": "en", "target": "fr"} | body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert told in answer.json()["error"]


def test_pieces_are_translated_between_the_languages_that_the_whole_names(http: httpx.Client) -> None:
    parameters = {"src_lang": "en_XX", "tgt_lang": "fr_XX", "split": "sentences"}
    answer = http.post("/", json={"inputs": "hello", "parameters": parameters, "model": "mbart"}).json()
    assert answer[0]["translation_text"] == directly(http, "hello", "en", "fr").strip()
    assert directly(http, "hello", "en", "fr") != directly(http, "hello", "fr", "en")


def test_forms_that_are_none(http: httpx.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    for content in (b"", b"q=a&source=en&source=fr&target=en", b"q=%ff&source=en&target=fr", b"nonsense"):
        assert http.post("/translate", content=content, headers=form).status_code == 400
    assert http.post("/translate", files={"q": b"hello"}).status_code == 400


def test_codes_are_short_where_they_stay_distinct() -> None:
    assert Languages.of({"__fr__": 1, "__zh__": 2}, None).targets == {"fr": ["zh"], "zh": ["fr"]}
    assert list(Languages.of({"pt_XX": 1, "zh_CN": 2, "zh_TW": 3, "fra_Latn": 4}, None).tokens) == [
        "fra_Latn",
        "pt",
        "zh_CN",
        "zh_TW",
    ]
    assert Languages.of({}, ("en", "de")).translates("en", "de")
    assert not Languages.of({}, None).targets


@pytest.mark.parametrize(
    "text", ["", "plain", "a < b", "<a", "<p>x</p>", "  <i> y </i>\n", "<style>p{}</style>z", "&amp;<b>&lt;</b>"]
)
def test_markup_with_its_own_texts_is_itself(text: str) -> None:
    markup = Markup(text)
    assert markup.with_texts(markup.texts).replace("&lt;", "<").replace("&gt;", ">") == text.replace("&lt;", "<")
