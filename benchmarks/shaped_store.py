"""A store with a model of a well-known shape, dense and pruned, and a workload for it: random weights, forced lengths.

    python -m benchmarks.shaped_store --shape t5-small --out FOLDER

For questions about a size for which there is no task: FOLDER/store holds NAME@dense and NAME@pruned (2 of the decoder's
layers, 30 % of the encoder cut), and FOLDER/workload.jsonl holds texts of half to all of the shape's source tokens.
Every answer has the shape's number of new tokens.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

from benchmarks.shapes import SHAPES, build, prune, save_with_tokenizer, word_of
from model_store.store import Store

DECODER_LAYERS = 2
TEXTS = 500


def main() -> None:
    """Build both models, publish them, write the workload."""
    parser = argparse.ArgumentParser(description="A store with random models of a well-known shape.")
    shapes = {shape.name: shape for shape in SHAPES}
    parser.add_argument("--shape", choices=shapes, default="t5-small")
    parser.add_argument("--new-tokens", type=int, help="of every answer; default: the shape's")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out {options.out} is there already: give a folder that is new")
    shape = shapes[options.shape]
    new_tokens = options.new_tokens or shape.new_tokens
    dense = build(shape)
    store = Store(options.out / "store")
    with tempfile.TemporaryDirectory() as folder:
        for alias, model in (("dense", dense), ("pruned", prune(dense, DECODER_LAYERS))):
            model.generation_config.update(min_new_tokens=new_tokens, max_new_tokens=new_tokens)
            save_with_tokenizer(model, Path(folder, alias), shape.vocab_size)
            done = store.publish(shape.name, Path(folder, alias), alias=alias)
            print(f"{done.name}:{done.version} is {done.name}@{alias}")
    draw = random.Random(0)
    with (options.out / "workload.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(TEXTS):
            length = draw.randint(shape.source_tokens // 2, shape.source_tokens - 1)
            words = (word_of(draw.randrange(3, shape.vocab_size)) for _ in range(length))
            file.write(json.dumps({"source": " ".join(words)}) + "\n")


if __name__ == "__main__":
    main()
