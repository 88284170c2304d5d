"""Write the example's two tasks from Debian's package descriptions.

    python -m examples.debian.prepare --out examples/debian/data

fetches the package index with apt and writes the folders `synopsis` (name and long description of a package to its
one-line synopsis) and `translate` (English to Italian), each with `train.jsonl`, `validation.jsonl`, `test.jsonl`
and a `tokenizer` trained on the training split. A hash of the source package's name chooses the split, so that what
is built from one source, and reads alike, never sits in two of them. It prints what was left out, and why.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from examples.debian.description_text import blocks, is_list_item, plain_key, sentences, synopsis_of
from examples.debian.package_index import IndexUnavailableError, Package, fetch, own_mirror, read_packages
from examples.debian.selection import select
from examples.unigram_tokenizer import save_tokenizer, train_tokenizer

SPLITS = ("train", "validation", "test")
VOCABULARY_SIZE = 8192
TOKENIZER_STRIDE = 3  # a third of the training rows names the same pieces in a third of the time
MAX_TRANSLATION_WORDS = 50
MAX_LENGTH_RATIO = 2.0
LONGEST_TOKENS = 128  # what the tokenizers' configuration gives as the models' limit


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a task. `key` is the same for texts that are the same to a reader."""

    package: str
    source_package: str
    source: str
    targets: tuple[str, ...]
    key: str


def stable_hash(text: str) -> int:
    """The same number on every machine and in every year."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(source_package: str) -> str:
    """91 % of the source packages are for training, 3 % for validation, 6 % for the test."""
    percentile = stable_hash(source_package) % 100
    return "train" if percentile < 91 else "validation" if percentile < 94 else "test"


def synopsis_examples(packages: list[Package]) -> list[Example]:
    """A package's name and long description, and its synopsis.

    The name belongs to it: `libfoo-dev` and `libfoo-doc` often share their long description.
    """
    examples = []
    for package in packages:
        description = package.descriptions["en"]
        long = blocks(description)
        examples.append(
            Example(
                package=package.name,
                source_package=package.source,
                source=f"{package.name}: {' '.join(long)}",
                targets=(synopsis_of(description),),
                key=plain_key(long[0]),
            )
        )
    return examples


def translation_examples(packages: list[Package], dropped: Counter[str]) -> list[Example]:
    """Sentences (where both sides have as many, else paragraphs) of the descriptions that have an Italian version.

    An English text that was translated in several ways is one row, with the most frequent translation first.
    """
    translations: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, Package] = {}
    for package in packages:
        if "it" not in package.descriptions:
            dropped["without an Italian description"] += 1
            continue
        for english, italian in _aligned(package.descriptions["en"], package.descriptions["it"], dropped):
            words = len(english.split())
            ratio = len(italian) / len(english)
            if words < 2:
                dropped["text of one word"] += 1
            elif words > MAX_TRANSLATION_WORDS:
                dropped[f"text of more than {MAX_TRANSLATION_WORDS} words"] += 1
            elif plain_key(english) == plain_key(italian):
                dropped["text that is not translated"] += 1
            elif not 1 / MAX_LENGTH_RATIO <= ratio <= MAX_LENGTH_RATIO:
                dropped[f"text {MAX_LENGTH_RATIO:g} times as long as the other"] += 1
            else:
                translations[english][italian] += 1
                first.setdefault(english, package)
    return [
        Example(
            package=first[english].name,
            source_package=first[english].source,
            source=english,
            targets=tuple(text for text, _ in ways.most_common()),
            key=plain_key(english),
        )
        for english, ways in translations.items()
    ]


def _aligned(english: str, italian: str, dropped: Counter[str]) -> list[tuple[str, str]]:
    pairs = [(synopsis_of(english), synopsis_of(italian))]
    long_en, long_it = blocks(english), blocks(italian)
    if [is_list_item(block) for block in long_en] != [is_list_item(block) for block in long_it]:
        dropped["long description that is laid out in another way"] += 1
        return pairs
    for block_en, block_it in zip(long_en, long_it, strict=True):
        parts_en, parts_it = sentences(block_en), sentences(block_it)
        same = len(parts_en) == len(parts_it)
        pairs += zip(parts_en, parts_it, strict=True) if same else [(block_en, block_it)]
    return pairs


def into_splits(examples: list[Example], dropped: Counter[str]) -> dict[str, list[Example]]:
    """The examples by split. What stands in training stays out of the other two, and the test's out of validation.

    The held-out splits are in the order of a hash, so that their first rows are a fair sample of all.
    """
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    taken: dict[str, str] = {}
    for split in ("train", "test", "validation"):
        for example in examples:
            if split_of(example.source_package) != split:
                continue
            if taken.setdefault(example.key, split) != split:
                dropped[f"{split} text that stands in {taken[example.key]} too"] += 1
            else:
                splits[split].append(example)
    for split in ("validation", "test"):
        splits[split].sort(key=lambda example: stable_hash(example.package + example.source))
    return splits


def write_task(folder: Path, examples: list[Example], dropped: Counter[str]) -> None:
    """Write one task's splits and tokenizer, and say how many rows there are and what was left out."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = into_splits(examples, dropped)
    print(f"{folder.name}:")
    for split, rows in splits.items():
        lines = []
        for row in rows:
            target = row.targets[0] if len(row.targets) == 1 else row.targets
            value = {"source": row.source, "target": target, "package": row.package}
            lines.append(json.dumps(value, ensure_ascii=False) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"  {split}: {len(rows)} rows of {len({row.source_package for row in rows})} source packages")
    for reason, count in sorted(dropped.items()):
        print(f"  left out: {count} x {reason}")
    texts = (text for row in splits["train"][::TOKENIZER_STRIDE] for text in (row.source, *row.targets))
    save_tokenizer(train_tokenizer(texts, VOCABULARY_SIZE), folder / "tokenizer", LONGEST_TOKENS)


def main() -> None:
    """Fetch, select, write both tasks."""
    parser = argparse.ArgumentParser(description="Write the Debian example's two tasks.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--mirror", help="A URL; default: the one that this machine's apt uses.")
    parser.add_argument("--suite", default="bookworm", help="The figures in README.md are bookworm's.")
    arguments = parser.parse_args()
    out: Path = arguments.out
    try:
        fetch(out / "index", arguments.mirror or own_mirror(arguments.suite), arguments.suite)
        packages = read_packages(out / "index")
    except IndexUnavailableError as error:
        sys.exit(f"error: {error}")
    dropped: Counter[str] = Counter()
    chosen = select(packages, dropped)
    print(f"{arguments.suite}: {len(packages)} packages, {len(chosen)} of them used")
    for reason, count in sorted(dropped.items()):
        print(f"  left out: {count} x {reason}")
    write_task(out / "synopsis", synopsis_examples(chosen), Counter())
    left_out: Counter[str] = Counter()
    write_task(out / "translate", translation_examples(chosen, left_out), left_out)


if __name__ == "__main__":
    main()
