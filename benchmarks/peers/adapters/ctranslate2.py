"""CTranslate2: its own converter and its Translator."""

import json
from pathlib import Path

from benchmarks.peers.adapters import Generator

PACKAGES = ("ctranslate2",)


def prepare(model: Path, made: Path, dtype: str) -> None:
    """Convert, with the weights in the type of the computation."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(model)).convert(str(made), quantization=dtype, force=True)


def load(model: Path, made: Path, dtype: str, threads: int) -> Generator:
    """One Translator, which works on one batch at a time."""
    import ctranslate2

    offered = ctranslate2.get_supported_compute_types("cpu")
    if dtype not in offered:  # otherwise it would silently take another type
        raise ValueError(
            f"CTranslate2 does not compute in {dtype} on this processor, only in {', '.join(sorted(offered))}"
        )
    translator = ctranslate2.Translator(
        str(made), device="cpu", intra_threads=threads, inter_threads=1, compute_type=dtype
    )
    words = json.loads((made / "shared_vocabulary.json").read_text(encoding="utf-8"))
    return _Translator(translator, words)


class _Translator:
    def __init__(self, translator: object, words: list[str]) -> None:
        self._translator, self._words = translator, words
        self._ids = {word: i for i, word in enumerate(words)}

    def generate(self, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
        """See `Generator`."""
        results = self._translator.translate_batch(  # type: ignore[attr-defined]
            [[self._words[token] for token in source] for source in sources],
            beam_size=1,
            max_decoding_length=new_tokens,
            min_decoding_length=new_tokens,
            max_input_length=0,
            max_batch_size=0,
        )
        return [[self._ids[word] for word in result.hypotheses[0]] for result in results]
