"""llama.cpp's T5 through its library, because its command line does not call the encoder.

Its int8 is Q8_0; its int4 is Q4_0 (with the vocabulary matrix in Q6_K, as in its own tool). A batch is that many
sequences in one context, encoded and decoded together.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.peers.adapters import Generator

PACKAGES = ("llama-cpp-python", "gguf")
_FILE = "model.gguf"
_MOST_TOKENS = 64  # of an answer
_TYPES = {"bfloat16": "LLAMA_FTYPE_MOSTLY_BF16", "int8": "LLAMA_FTYPE_MOSTLY_Q8_0", "int4": "LLAMA_FTYPE_MOSTLY_Q4_0"}


def prepare(model: Path, made: Path, dtype: str) -> None:
    """Write the float32 file, and quantize it with the library's own function."""
    import llama_cpp

    made.mkdir(parents=True, exist_ok=True)
    if dtype == "float32":
        _write(model, made / _FILE)
        return
    plain = made / "float32.gguf"
    _write(model, plain)
    wanted = llama_cpp.llama_model_quantize_default_params()
    wanted.ftype = getattr(llama_cpp, _TYPES[dtype])
    failed = llama_cpp.llama_model_quantize(str(plain).encode(), str(made / _FILE).encode(), wanted)
    plain.unlink()
    if failed:
        raise RuntimeError(f"llama.cpp could not quantize to {_TYPES[dtype]}")


def _write(model: Path, file: Path) -> None:
    """Write a T5 as a GGUF file without a vocabulary: the input is tokens."""
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "t5":
        raise ValueError(f"llama.cpp has no architecture for {config['model_type']!r}, only for T5")
    writer = gguf.GGUFWriter(file, "t5")
    writer.add_context_length(config.get("n_positions", 512))
    writer.add_embedding_length(config["d_model"])
    writer.add_feed_forward_length(config["d_ff"])
    writer.add_block_count(config["num_layers"])
    writer.add_decoder_block_count(config["num_decoder_layers"])
    writer.add_head_count(config["num_heads"])
    writer.add_key_length(config["d_kv"])
    writer.add_value_length(config["d_kv"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_relative_attn_buckets_count(config["relative_attention_num_buckets"])
    writer.add_decoder_start_token_id(config["decoder_start_token_id"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, config["num_layers"])
    for name, tensor in load_file(model / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight",))
        if found is None:
            raise ValueError(f"llama.cpp's T5 has no tensor for {name}")
        writer.add_tensor(found, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(model: Path, made: Path, dtype: str, threads: int) -> Generator:
    """Load the weights; a context is made for the first batch of its size."""
    import llama_cpp

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(str(made / _FILE).encode(), llama_cpp.llama_model_default_params())
    if loaded is None:
        raise RuntimeError("llama.cpp could not load what it had written")
    return _Model(loaded, threads, config["decoder_start_token_id"], config["vocab_size"])


class _Model:
    def __init__(self, model: Any, threads: int, start_id: int, vocab_size: int) -> None:
        self._model, self._threads = model, threads
        self._start_id, self._vocab_size = start_id, vocab_size
        self._contexts: dict[tuple[int, int], Any] = {}

    def generate(self, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
        """See `Generator`."""
        import llama_cpp
        import numpy as np

        batch, length = len(sources), len(sources[0])
        context = self._context(batch, length)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        rows = [(token, at, row) for row, source in enumerate(sources) for at, token in enumerate(source)]
        self._run(llama_cpp.llama_encode, context, rows)
        last = [self._start_id] * batch
        made: list[list[int]] = [[] for _ in sources]
        for at in range(new_tokens):
            self._run(llama_cpp.llama_decode, context, [(token, at, row) for row, token in enumerate(last)])
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), shape=(batch, self._vocab_size))
            last = logits.argmax(axis=1).tolist()
            for tokens, token in zip(made, last, strict=True):
                tokens.append(token)
        return made

    def _context(self, batch: int, length: int) -> Any:
        import llama_cpp

        if (batch, length) not in self._contexts:
            wanted = llama_cpp.llama_context_default_params()
            wanted.n_seq_max = batch
            wanted.n_ctx = batch * _MOST_TOKENS
            wanted.kv_unified = True  # T5's relative positions need one cache for all sequences
            wanted.n_batch = wanted.n_ubatch = batch * length  # an encoder's tokens cannot be split
            wanted.n_threads = wanted.n_threads_batch = self._threads
            context = llama_cpp.llama_init_from_model(self._model, wanted)
            if context is None:
                raise RuntimeError(f"llama.cpp could not make a context for {batch} sequences")
            self._contexts[batch, length] = context
        return self._contexts[batch, length]

    def _run(self, function: Any, context: Any, rows: list[tuple[int, int, int]]) -> None:
        """Encode or decode tokens, each at a position of a sequence, and compute the logits of all."""
        import llama_cpp

        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for i, (token, position, sequence) in enumerate(rows):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = 1
            code = function(context, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp's {function.__name__} ended with {code}")
