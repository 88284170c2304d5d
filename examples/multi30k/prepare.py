"""Write the example's data: image captions from English to German and to French, from the files of Multi30k.

    git clone https://github.com/multi30k/dataset multi30k
    python -m examples.multi30k.prepare --from multi30k

writes the folders `data/de` and `data/fr`, each with `train.jsonl`, `validation.jsonl`, the test sets `test.jsonl`
(2016), `test-2017.jsonl` and `test-coco.jsonl`, and a `tokenizer` for both languages, trained on the training split.
Texts are in small letters, as in the published results that the example is compared with.
"""

import argparse
import gzip
import json
import sys
import unicodedata
from pathlib import Path

from examples.unigram_tokenizer import save_tokenizer, train_tokenizer

SPLITS = {
    "train": "train",
    "validation": "val",
    "test": "test_2016_flickr",
    "test-2017": "test_2017_flickr",
    "test-coco": "test_2017_mscoco",
}
LANGUAGES = ("de", "fr")
VOCABULARY_SIZE = 4096
LONGEST_TOKENS = 128  # given in the tokenizers' configuration as the models' limit
IN_REPOSITORY = Path("data/task1/raw")
_DOUBLE_QUOTES = "\u201e\u201c\u201d\u00ab\u00bb"
_SINGLE_QUOTES = "\u2018\u2019`\u00b4"
_QUOTES = str.maketrans(dict.fromkeys(_DOUBLE_QUOTES, '"') | dict.fromkeys(_SINGLE_QUOTES, "'"))


def cleaned(line: str) -> str:
    """A caption in small letters, with plain quotation marks and single spaces."""
    text = unicodedata.normalize("NFC", line).translate(_QUOTES).replace("''", '"')
    return " ".join(text.lower().split())


def captions(folder: Path, split: str, language: str) -> list[str]:
    """The captions of a split in one language, in the order that all languages share.

    Raises:
        OSError: the file is missing or is not a gzip file.
    """
    path = folder / f"{SPLITS[split]}.{language}.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return [cleaned(line) for line in (lines[:-1] if lines[-1] == "" else lines)]


def rows(folder: Path, split: str, language: str) -> list[tuple[str, str]]:
    """The English captions of a split and their translations.

    Raises:
        OSError: a file is missing or is not a gzip file.
        ValueError: the two languages have different numbers of captions.
    """
    english, translated = captions(folder, split, "en"), captions(folder, split, language)
    if len(english) != len(translated):
        raise ValueError(f"{split}: {len(english)} captions in en, but {len(translated)} in {language}")
    return list(zip(english, translated, strict=True))


def main() -> None:
    """Write the data of both languages."""
    parser = argparse.ArgumentParser(description="Write the Multi30k example's data and tokenizers.")
    parser.add_argument("--from", dest="source", type=Path, required=True, help="a copy of Multi30k's repository")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data", help="default: %(default)s")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY_SIZE, help="pieces; default: %(default)s")
    arguments = parser.parse_args()
    below = arguments.source / IN_REPOSITORY
    source = below if below.is_dir() else arguments.source
    for language in LANGUAGES:
        out = arguments.out / language
        out.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            try:
                found = rows(source, split, language)
            except (OSError, ValueError) as error:
                sys.exit(
                    f"{source} is not Multi30k: {error}; clone https://github.com/multi30k/dataset and give its path"
                )
            if split == "train":
                texts = (text for pair in found for text in pair)
                tokenizer = train_tokenizer(texts, arguments.vocabulary, lower_case=True)
                save_tokenizer(tokenizer, out / "tokenizer", LONGEST_TOKENS)
            written = [json.dumps({"source": s, "target": t}, ensure_ascii=False) + "\n" for s, t in found if s and t]
            (out / f"{split}.jsonl").write_text("".join(written), encoding="utf-8")
            print(f"{language}, {split}: {len(written)} rows")


if __name__ == "__main__":
    main()
