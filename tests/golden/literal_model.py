"""A model of which every byte stands here: no library writes any of its files."""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CONFIG: Mapping[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 3,
    "d_kv": 2,
    "d_model": 4,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "feed_forward_proj": "relu",
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 1,
    "num_heads": 2,
    "num_layers": 1,
    "pad_token_id": 0,
    "relative_attention_max_distance": 8,
    "relative_attention_num_buckets": 4,
    "tie_word_embeddings": True,
    "vocab_size": 5,
}
_TOKENIZER: Mapping[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": {"<pad>": 0, "</s>": 1, "<unk>": 2, "yes": 3, "no": 4},
        "unk_token": "<unk>",
    },
}


def write_literal_model(folder: Path, *, shift: int = 0) -> Path:
    """Write the model into a new folder, and return it; another `shift` gives other weights."""
    folder.mkdir(parents=True)
    documents = {
        "config.json": _CONFIG,
        "generation_config.json": {"max_new_tokens": 4},
        "tokenizer.json": _TOKENIZER,
    }
    for name, document in documents.items():
        (folder / name).write_bytes(json.dumps(document, sort_keys=True, indent=1).encode("ascii") + b"\n")
    (folder / "README.md").write_bytes(b"# A model of few words\n")
    (folder / "model.safetensors").write_bytes(_safetensors(dict(_shapes()), shift))
    return folder


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "shared.weight", (5, 4)
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        block = f"{stack}.block.0.layer"
        for i, attention in enumerate(attentions):
            yield f"{block}.{i}.layer_norm.weight", (4,)
            yield from ((f"{block}.{i}.{attention}.{name}.weight", (4, 4)) for name in "qkvo")
        yield f"{block}.0.SelfAttention.relative_attention_bias.weight", (4, 2)
        yield f"{block}.{len(attentions)}.layer_norm.weight", (4,)
        yield f"{block}.{len(attentions)}.DenseReluDense.wi.weight", (3, 4)
        yield f"{block}.{len(attentions)}.DenseReluDense.wo.weight", (4, 3)
        yield f"{stack}.final_layer_norm.weight", (4,)


def _safetensors(shapes: Mapping[str, tuple[int, ...]], shift: int) -> bytes:
    """The format by hand: the header's length, the header, and then the numbers: quarters from -1 to 1."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    numbers: list[float] = []
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        begin = len(numbers)
        numbers += [((begin + i + shift) % 9 - 4) / 4 for i in range(count)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [4 * begin, 4 * len(numbers)]}
    head = json.dumps(header, separators=(",", ":")).encode("ascii")
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + struct.pack(f"<{len(numbers)}f", *numbers)
