"""The proof that serving reads and writes texts as training does: the same tokens, the same text back."""

# ruff: noqa: RUF001 - characters that look like others are the point of some texts
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from model_store.model.model import TOKENIZER
from nash.data.rows import Rows
from nash.errors import RequestError

# What tokenizers differ in: white space, normal forms, scripts, characters of several units, controls, their own marks.
TEXTS = (
    "",
    " ",
    "a",
    "The quick brown fox jumps over the lazy dog, 1,234.56 times.",
    "  two  spaces,\ta tab,\na line\r\nand an end  ",
    "\u00a0no-break\u2009thin\u3000wide\u2028line\u200bzero\ufeff",
    "Grüße aus Köln, señor! Ça va, naïve façade? Łódź, Đà Nẵng",
    "Tie\u0302\u0301ng Vie\u0323\u0302t, e\u0301te\u0301, Ko\u0308ln, \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "ｆｕｌｌ ＷＩＤＴＨ ﬁne ½ ² ① ™ ℃ Ⅳ",
    "«quotes» „low“ “high” ‘one’ … – — ‐ · • ¿? ¡!",
    "Москва Ελλάδα עברית العربية हिन्दी ไทย 東京 中文 한국어",
    "👍🏽 emoji 👨\u200d👩\u200d👧 🇩🇪 ☺\ufe0f",
    "control \x00\x01\x07\x1b\x7f\x85 end",
    "▁ ▁▁ _ __ < > << >> <s> <0x41> #1 @-@ {} [] \\ ~ ^",
    "ß",
    "ßü 漢 漢字 é",
    "supercalifragilisticexpialidocious" * 3,
)
_MOST_TEXTS = 2000


def check_equal(
    served: Tokenizer, tokenizer: PreTrainedTokenizerBase, sources: Iterable[str], targets: Iterable[str], name: str
) -> None:
    """Compare the tokens of sources, and the texts of targets' tokens, with those of the class that training uses.

    Of many texts, evenly spaced ones are compared. The same tokens in another order pass. `name` says which tokenizer
    it is.

    Raises:
        RequestError: a text differs; the message has the first and the tokens of both.
    """
    served.no_truncation()
    served.no_padding()
    chosen = _spaced(list(sources))
    for text, ours, theirs in zip(chosen, served.encode_batch(chosen), tokenizer(chosen).input_ids, strict=True):
        # SentencePiece adds scores in single precision, `tokenizers` in double. In a run such as ===== any order of the
        # same pieces has the same score, and rounding decides.
        if ours.ids != theirs and sorted(ours.ids) != sorted(theirs):
            raise _differing(name, f"the text {text[:200]!r} would be the tokens {ours.ids}", f"tokens {theirs}")
    chosen = _spaced(list(targets))
    for ids in tokenizer(text_target=chosen, add_special_tokens=False).input_ids:
        shown, wanted = served.decode(ids, skip_special_tokens=True), tokenizer.decode(ids, skip_special_tokens=True)
        if shown != wanted:
            raise _differing(name, f"the tokens {ids} would be the text {shown!r}", f"text {wanted!r}")


def _spaced(texts: Sequence[str]) -> list[str]:
    """About `_MOST_TEXTS` of the texts, evenly spaced, and the empty text, which they may lack."""
    return ["", *texts[:: max(1, len(texts) // _MOST_TEXTS)]]


def _differing(name: str, ours: str, theirs: str) -> RequestError:
    return RequestError(
        f"{name}: tokenizer.json, which serving reads, differs from the tokenizer's class: {ours}, "
        f"but they are the {theirs}: leave such texts out, or save a tokenizer.json that agrees"
    )


def check_task(folder: Path, tokenizer: PreTrainedTokenizerBase, *splits: Rows) -> None:
    """Compare `tokenizer.json` in a folder with the class loaded from there on a task's texts.

    A class that contains a tokenizer of the library `tokenizers` needs no comparison.

    Raises:
        RequestError: a text differs.
    """
    if tokenizer.is_fast:
        return
    served = Tokenizer.from_file(str(folder / TOKENIZER))
    step = max(1, sum(map(len, splits)) // _MOST_TEXTS)
    rows = list(islice(chain.from_iterable(splits), None, None, step))
    targets = [target for row in rows for target in row.targets]
    check_equal(served, tokenizer, [row.source for row in rows], targets, folder.name)
