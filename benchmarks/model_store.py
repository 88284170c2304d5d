"""What the model store costs: a publish beside copying and hashing, and finding one version among many.

    python -m benchmarks.model_store [--gigabytes 1] [--versions 10000] [--out FILE]

A publish copies, hashes, checks every weight and makes all of it durable. It is compared with a plain copy that is
hashed and synced, in turn, A B B A, each after a sync of the disk and on the same file system. Versions are then found
by number, by alias and by name, and `nash models ls` is run as a process of its own, once as a table and once as JSON.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks.environment import environment
from model_store.objects import keys
from model_store.storage.files import copy_new
from model_store.store import Store

ROUNDS = 4
REPEATS = 9
PROGRAM = "import sys; sys.argv[0] = 'nash'; from nash.cli.main import main; main()"  # as the command, without torch
D_MODEL, LAYER_FFN = 1024, 4096


def build(folder: Path, gigabytes: float) -> None:
    """A dense T5 of random weights and about this size."""
    config = {"vocab_size": 32000, "d_model": D_MODEL, "d_ff": LAYER_FFN, "num_heads": 16, "decoder_start_token_id": 0}
    with torch.device("meta"):
        one, two = (T5ForConditionalGeneration(T5Config(num_layers=n, num_decoder_layers=1, **config)) for n in (1, 2))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (one, two)]
    layers = max(1, round((gigabytes * 1e9 / 4 - sizes[0]) / (sizes[1] - sizes[0])) + 1)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(num_layers=layers, num_decoder_layers=1, **config))
    model.save_pretrained(folder)
    Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")).save(
        str(folder / "tokenizer.json")
    )


def seconds(work: Callable[[], object], folder: Path) -> float:
    """How long the work takes on a disk that is at rest; what it wrote to the folder is deleted."""
    os.sync()
    time.sleep(1)
    started = time.perf_counter()
    work()
    taken = time.perf_counter() - started
    shutil.rmtree(folder)
    return taken


def publish_beside_copy(model: Path, folder: Path) -> dict[str, Any]:
    """Seconds of both, in pairs."""
    copied, stored = folder / "copy", folder / "store"

    def copy() -> None:
        copied.mkdir()
        for path in model.iterdir():
            copy_new(path, copied / path.name)

    def publish() -> None:
        Store(stored).publish("model", model)

    pairs = []
    for turn in range(ROUNDS):
        if turn % 2 == 0:
            plain, whole = seconds(copy, copied), seconds(publish, stored)
        else:
            whole, plain = seconds(publish, stored), seconds(copy, copied)
        pairs.append({"copy_s": plain, "publish_s": whole, "ratio": whole / plain})
        print(f"copy {plain:.2f} s, publish {whole:.2f} s", flush=True)
    size = sum(path.stat().st_size for path in model.iterdir())
    return {"bytes": size, "pairs": pairs, "ratio": statistics.median(pair["ratio"] for pair in pairs)}


def many_versions(root: Path, model: Path, count: int) -> None:
    """A store of so many versions, which differ in a metric; the objects are written as a publish would leave them."""
    store = Store(root)
    store.publish("model", model, alias="live", metrics={"number": 1.0})
    first = store.resolve("model").manifest
    for number in range(2, count + 1):
        data = replace(first, metrics={"number": float(number)}).canonical_bytes()
        digest = hashlib.sha256(data).hexdigest()
        blob = root / keys.blob(digest)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (root / keys.version("model", number)).write_bytes(f"{digest}\n".encode())


def finding(root: Path, count: int) -> dict[str, Any]:
    """Milliseconds to find one version, and seconds to list all."""
    store = Store(root)
    found: dict[str, Any] = {"versions": count, "resolve_ms": {}, "ls_s": {}}
    for ref in ("model", "model@live", f"model:{count}"):
        taken = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            store.resolve(ref)
            taken.append(1e3 * (time.perf_counter() - started))
        found["resolve_ms"][ref] = statistics.median(taken)
    nash = [sys.executable, "-c", PROGRAM, "models", "ls", "--store", str(root)]
    for form, flags in (("table", []), ("json", ["--json"])):
        taken = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            subprocess.run([*nash, *flags], stdout=subprocess.DEVNULL, check=True)
            taken.append(time.perf_counter() - started)
        found["ls_s"][form] = statistics.median(taken)
    return found


def shrunk(model: Path, folder: Path) -> Path:
    """The same model with one small layer, so that a store of many versions is made quickly."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = T5Config(
        vocab_size=8,
        d_model=8,
        d_ff=8,
        d_kv=4,
        num_heads=2,
        num_layers=1,
        num_decoder_layers=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="What the model store costs.")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--versions", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(folder / "model", options.gigabytes)
        result = {"environment": environment(), "publish": publish_beside_copy(folder / "model", folder)}
        many_versions(folder / "many", shrunk(folder / "model", folder / "small"), options.versions)
        result["finding"] = finding(folder / "many", options.versions)
    print(json.dumps(result, indent=2))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
