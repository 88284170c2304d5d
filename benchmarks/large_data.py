"""The memory and the time of the data path on many long rows: reading, tokenizing, and an epoch of batches.

    python -m benchmarks.large_data --rows 300000 --tokens 512

Rows are made of random words and written to a JSONL file; a BPE tokenizer is trained on some of them. Then the data
goes the way of a run, in a process of its own: rows are read and checked, their digest is taken, they are tokenized
into a run's folder, and one epoch of batches of similar lengths is made. A second process does the same with the tokens
that the first has left. Both say the peak of their anonymous memory (RssAnon), that of their data loader's workers
included: what is mapped from files is the system's cache, which it takes back when it needs the memory.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from benchmarks.environment import environment
from nash.data.examples import Collator, SimilarLengthSampler
from nash.data.rows import RowFile, data_digest
from nash.modeling.folders import load_tokenizer, quiet_libraries
from nash.recipes.recipe import DataRecipe
from nash.training.token_cache import TOKENS, TokenCache

LIMIT_BYTES = 2 * 10**9
WORDS = 1000
VOCABULARY = 8000
TOKENIZER_ROWS = 300  # what the tokenizer is trained on
SAMPLED_EVERY_S = 0.02
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def write_rows(path: Path, options: argparse.Namespace) -> int:
    """Write the rows: sources of about `tokens` tokens, half of them longer, and answers of an eighth; return bytes."""
    draw = random.Random(0)
    words = [
        "".join(draw.choices(LETTERS, weights=range(len(LETTERS), 0, -1), k=draw.randint(2, 9))) for _ in range(WORDS)
    ]

    def text(tokens: int) -> str:
        return " ".join(draw.choices(words, k=max(1, round(tokens * draw.uniform(0.9, 1.1)))))

    with path.open("w", encoding="utf-8") as file:
        for _ in range(options.rows):
            row = {"source": text(options.tokens), "target": text(options.tokens // 8)}
            file.write(json.dumps(row) + "\n")
    return path.stat().st_size


def write_tokenizer(folder: Path, data: DataRecipe) -> None:
    """Train a BPE tokenizer on the first rows; nearly every word becomes one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    with data.train.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["source"] for line, _ in zip(lines, range(TOKENIZER_ROWS), strict=False)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def data_path(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a run does with its training rows. Call it in a process of its own."""
    quiet_libraries()
    data = _recipe(folder, options)
    seconds: dict[str, float] = {}
    begun_s = time.process_time()
    with _peak() as peak:
        with _timed(seconds, "reading"):
            rows = RowFile(data.train, data)
        with _timed(seconds, "digest"):
            digest = data_digest(data.train, data)
        with _timed(seconds, "tokens"):
            cache = TokenCache(
                folder=folder / TOKENS,
                tokenizer=load_tokenizer(folder),
                tokenizer_folder=folder,
                data=data,
                console=Console(stderr=True),
            )
            pairs = cache.pairs(rows, {"data": digest})
        with _timed(seconds, "epoch"):
            sampler = SimilarLengthSampler(pairs.lengths(), options.batch_size, seed=0)
            collate = Collator(pad_id=0)
            loader = DataLoader(
                pairs, options.batch_size, sampler=sampler, collate_fn=collate, num_workers=options.workers
            )
            checksum = sum(int(batch["input_ids"].sum() + batch["labels"].sum()) for batch in loader)
    return {
        "peak_anonymous_bytes": peak["bytes"],
        "cpu_seconds": round(time.process_time() - begun_s, 2),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "rows": len(rows),
        "tokens": int(pairs.lengths().sum()),
        "cut": pairs.cut,
        "checksum": checksum,
    }


def _recipe(folder: Path, options: argparse.Namespace) -> DataRecipe:
    return DataRecipe(
        train=folder / "train.jsonl",
        validation=folder / "train.jsonl",
        max_source_tokens=options.tokens,
        max_target_tokens=options.tokens,
        workers=options.workers,
    )


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun_s = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun_s


@contextmanager
def _peak() -> Iterator[dict[str, int]]:
    """Sample the anonymous memory of this process and its children until the block ends."""
    found, ended = {"bytes": 0}, Event()

    def sample() -> None:
        over = False
        while not over:  # a short block is looked at when it ends
            over = ended.wait(SAMPLED_EVERY_S)
            children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
            found["bytes"] = max(found["bytes"], anonymous_bytes("self") + sum(map(anonymous_bytes, children)))

    thread = Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def anonymous_bytes(process: int | str) -> int:
    """A process's resident memory that is not mapped from a file; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def _in_own_process(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(_undaemonized, (folder, options))


def _undaemonized(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A pool's process may not have children unless it says so."""
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    return data_path(folder, options)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description="Memory and time of the data path on many long rows.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=512, help="the limit of a source, and about its length")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to write the rows and the tokens, which go afterwards")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        size = write_rows(folder / "train.jsonl", options)
        write_tokenizer(folder, _recipe(folder, options))
        runs = {name: _in_own_process(folder, options) for name in ("first", "again")}
        kept_bytes = sum(file.stat().st_size for file in (folder / TOKENS).rglob("*") if file.is_file())
    finally:
        shutil.rmtree(folder)
    print(f"{options.rows} rows, {size / 1e6:.0f} MB of JSONL, {kept_bytes / 1e6:.0f} MB of tokens")
    names = list(runs["first"]["seconds"])
    print(f"{'call':<8}{'peak MB':>10}" + "".join(f"{f'{name} s':>12}" for name in names) + f"{'CPU s':>12}")
    for call, found in runs.items():
        times = "".join(f"{found['seconds'][name]:>12.1f}" for name in names)
        print(f"{call:<8}{found['peak_anonymous_bytes'] / 1e6:>10.0f}{times}{found['cpu_seconds']:>12.1f}")
    print(f"asked: a peak of anonymous memory under {LIMIT_BYTES / 1e9:g} GB")
    if options.out is not None:
        document = {
            "environment": environment(),
            "threads": torch.get_num_threads(),
            "jsonl_bytes": size,
            "kept_bytes": kept_bytes,
            "limit_bytes": LIMIT_BYTES,
            "batch_size": options.batch_size,
            "workers": options.workers,
            "calls": runs,
        }
        options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
