"""Trim a vocabulary to a task: fewer rows in the embedding and the output matrix, unchanged rows for the kept tokens.

These tokens are kept: those of the task's texts, special and added tokens (T5's sentinels and languages too: they are
few, and transformers adds them again if they are missing), tokens that a configuration names, and single characters and
bytes for unseen text. The kept tokens' logits do not change; their probabilities change by the share that the removed
tokens had.
"""

import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from model_store.model.model import Model
from nash.data.rows import Texts
from nash.data.tokens import in_batches
from nash.errors import RequestError
from nash.modeling.compact import fill
from nash.modeling.folders import load_dense, load_tokenizer, save_model
from nash.vocabulary.tokenizer_file import closed, document_of, fallback_ids, special_ids, text_of, trimmed

# The tensors with a row per token, by the ends of their names, and the one with a column per token.
_ROWS = ("shared.weight", "embed_tokens.weight", "lm_head.weight")
_COLUMNS = "final_logits_bias"

# Keys of config.json and generation_config.json that hold tokens, besides those that end in "token_id". A ban on a
# removed token is removed too.
_TOKENS = ("suppress_tokens", "begin_suppress_tokens")
_TOKEN_SEQUENCES = ("bad_words_ids",)
_NOT_SERVED = ("force_words_ids", "forced_decoder_ids", "sequence_bias")


@dataclass(frozen=True, kw_only=True)
class VocabularyReport:
    """Where the kept tokens come from; a token counts once, in the first field that fits."""

    dense: int  # rows of the dense model's embedding
    kept: int
    data: int  # tokens of the texts
    special: int  # added tokens, and those that a configuration names
    merged: int  # tokens that merge, in one or more steps, into those above
    fallback: int  # single characters and bytes, for other texts


@dataclass(frozen=True, kw_only=True)
class VocabularyPlan:
    """The tokens to keep. Their new ids are their positions in `kept`."""

    kept: tuple[int, ...]  # ids in the dense vocabulary, ascending
    report: VocabularyReport

    @cached_property
    def new_ids(self) -> Mapping[int, int]:
        """The new id of every kept token."""
        return {old: new for new, old in enumerate(self.kept)}


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How the trimmed vocabulary tokenizes held-out texts, which did not choose it."""

    texts: int
    unchanged: int  # texts with the same tokens as before
    tokens: int  # under the dense vocabulary
    kept: int  # of these
    tokens_now: int  # more than before, as one token may have become several
    unknown: int  # unknown tokens
    unknown_now: int

    def __str__(self) -> str:
        return (
            f"{self.unchanged / max(self.texts, 1):.1%} of {self.texts} texts tokenize as before, "
            f"{self.kept / max(self.tokens, 1):.2%} of their tokens are kept; {self.tokens} tokens become "
            f"{self.tokens_now}, and {self.unknown} unknown ones become {self.unknown_now}"
        )


def names_tokens(key: str) -> bool:
    """Whether the value of this key of config.json or generation_config.json holds tokens."""
    return key.endswith("token_id") or key in (*_TOKENS, *_TOKEN_SEQUENCES, *_NOT_SERVED)


def trim_vocabulary(
    dense: Model, out: Path, texts: Texts | Sequence[str], held_out: Mapping[str, Texts | Sequence[str]]
) -> dict[str, Any]:
    """Write the dense model to the folder `out` with the vocabulary that the texts need, whole or not at all.

    Returns a JSON object with the numbers of kept tokens and the coverage of the `held_out` texts by name.

    Raises:
        RequestError: the vocabulary cannot be trimmed, or a text would not be tokenized as before.
    """
    plan, before = plan_vocabulary(dense, texts), dense.folder
    tokenizer = out.with_name(f".{out.name}.tokenizer")
    shutil.rmtree(tokenizer, ignore_errors=True)  # left by a killed run
    try:
        write_tokenizer(before, tokenizer, plan)
        check_texts(before, tokenizer, plan, texts)
        coverage = {split: measure_coverage(before, tokenizer, plan, each) for split, each in held_out.items()}
        save_model(trim_model(load_dense(dense), plan), tokenizer, out, torch.float32)
    finally:
        shutil.rmtree(tokenizer, ignore_errors=True)
    return {**asdict(plan.report), "coverage": {split: asdict(each) for split, each in coverage.items()}}


def plan_vocabulary(model: Model, texts: Iterable[str]) -> VocabularyPlan:
    """Choose the tokens that the texts need.

    Raises:
        RequestError: the model or its tokenizer is of a kind that cannot be trimmed.
    """
    spec, folder = model.spec, model.folder
    if not spec.shared_embedding:
        raise RequestError(
            f"{folder} has separate vocabularies for sources and targets, which cannot be trimmed: leave trim_vocab out"
        )
    documents = [document_of(tokenizer) for tokenizer in _tokenizers(folder)]
    used = _used_ids(folder, texts)
    special = set(_named_ids(folder)) | {spec.pad_id, spec.eos_id, spec.decoder_start_id}
    if spec.facts.positions == "endless":
        special |= set(range(spec.pad_id))  # the model counts positions from the padding id
    special |= special_ids(documents[0])
    # A class may add tokens that the model has no rows for, such as T5's sentinels.
    special |= {i for i in special_ids(documents[1]) if i < spec.vocab_size}
    if stray := sorted(i for i in used | special if not 0 <= i < spec.vocab_size):
        raise RequestError(
            f"{folder} uses the token id {stray[0]}, but its model has a vocabulary of {spec.vocab_size}: "
            "they do not belong together"
        )
    needed = closed(documents[0], used | special)
    kept = needed | fallback_ids(documents[0], needed)
    report = VocabularyReport(
        dense=spec.vocab_size,
        kept=len(kept),
        data=len(used),
        special=len(special - used),
        merged=len(needed - used - special),
        fallback=len(kept - needed),
    )
    return VocabularyPlan(kept=tuple(sorted(kept)), report=report)


@torch.no_grad()
def trim_model(model: PreTrainedModel, plan: VocabularyPlan) -> PreTrainedModel:
    """A copy of the dense or compact model, with rows only for the kept tokens and the new ids in its configuration."""
    if model.config.vocab_size != plan.report.dense:
        raise ValueError(f"the model has {model.config.vocab_size} tokens, but the plan is for {plan.report.dense}")
    config = copy.deepcopy(model.config)
    config.dense_vocab_size = getattr(config, "dense_vocab_size", None) or plan.report.dense
    config.vocab_size = len(plan.kept)
    if hasattr(config, "decoder_vocab_size"):
        config.decoder_vocab_size = len(plan.kept)
    _renumber(config, plan)
    result: PreTrainedModel = type(model)(config)
    fill(result, _trimmed_tensors(model.state_dict(), plan))
    result.generation_config = copy.deepcopy(model.generation_config)
    _renumber(result.generation_config, plan)
    return result


def write_tokenizer(folder: Path, out: Path, plan: VocabularyPlan) -> None:
    """Write the tokenizer of a model's folder to the folder `out` with only the kept tokens.

    tokenizer.json is complete, so files for older libraries, such as SentencePiece models, are left out.

    Raises:
        RequestError: the written tokenizer does not load as intended.
    """
    before = _tokenizers(folder)
    out.mkdir(parents=True, exist_ok=True)
    original = (folder / "tokenizer.json").read_text(encoding="utf-8")
    written = text_of(trimmed(document_of(before[0]), plan.new_ids), original, plan.kept)
    (out / "tokenizer.json").write_text(written, encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if not (folder / name).is_file():
            continue
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        if name == "added_tokens.json":
            fields = _with_new_ids(fields, plan)
        elif "added_tokens_decoder" in fields:
            decoder = {int(i): token for i, token in fields["added_tokens_decoder"].items()}
            # It may name tokens for which the model has no rows; leave them out, as in a vocabulary.
            kept = {str(plan.new_ids[i]): token for i, token in decoder.items() if i in plan.new_ids}
            fields["added_tokens_decoder"] = kept
        _write_json(out / name, fields)
    for old, new in zip(before, _tokenizers(out), strict=True):
        with_rows = {token: i for token, i in new.get_vocab().items() if i < len(plan.kept)}
        if with_rows != _with_new_ids(old.get_vocab(), plan):
            raise RequestError(
                f"the tokenizer in {folder} loads differently with fewer tokens: leave trim_vocab out, "
                'or set "tokenizer_class" in its tokenizer_config.json to "PreTrainedTokenizerFast"'
            )


def check_texts(before: Path, after: Path, plan: VocabularyPlan, texts: Iterable[str]) -> None:
    """Check that every text has the same tokens under both folders' tokenizers.

    Raises:
        RequestError: a text has different tokens; the message shows the first.
    """
    for old_tokenizer, new_tokenizer in _distinct_pairs(before, after):
        for text, old, new in _encoded_by_both(old_tokenizer, new_tokenizer, texts):
            if [plan.new_ids.get(i) for i in old] != new:
                raise RequestError(
                    f"with fewer tokens the text {text[:60]!r} would not be tokenized as before: leave trim_vocab out"
                )


def measure_coverage(before: Path, after: Path, plan: VocabularyPlan, texts: Iterable[str]) -> Coverage:
    """Count how the tokens of texts, as training reads them, change between the tokenizers of two folders."""
    unknown, unknown_now = load_tokenizer(before).unk_token_id, load_tokenizer(after).unk_token_id
    counts = dict.fromkeys(Coverage.__dataclass_fields__, 0)
    *_, (old_tokenizer, new_tokenizer) = _distinct_pairs(before, after)
    for _, old, new in _encoded_by_both(old_tokenizer, new_tokenizer, texts):
        renumbered = [plan.new_ids.get(i) for i in old]
        counts["texts"] += 1
        counts["unchanged"] += renumbered == new
        counts["tokens"] += len(old)
        counts["kept"] += len(old) - renumbered.count(None)
        counts["tokens_now"] += len(new)
        counts["unknown"] += old.count(unknown)
        counts["unknown_now"] += new.count(unknown_now)
    return Coverage(**counts)


def _tokenizers(folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """The folder's tokenizer as serving reads it, and as training reads it."""
    loaded = load_tokenizer(folder)
    if not loaded.is_fast:
        raise RequestError(
            f"{folder}: {type(loaded).__name__} does not read tokenizer.json, so it cannot be trimmed: set "
            '"tokenizer_class" in tokenizer_config.json to "PreTrainedTokenizerFast" if tokenizer.json is complete'
        )
    return Tokenizer.from_file(str(folder / "tokenizer.json")), loaded.backend_tokenizer


def _distinct_pairs(*folders: Path) -> list[tuple[Tokenizer, ...]]:
    """The folders' tokenizers side by side: as serving reads them and as training reads them; once if both are equal.

    They do not truncate or pad.
    """
    pairs = list(zip(*map(_tokenizers, folders), strict=True))
    for tokenizer in (each for pair in pairs for each in pair):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    serving, training = ([tokenizer.to_str() for tokenizer in pair] for pair in pairs)
    return pairs[1:] if serving == training else pairs


def _used_ids(folder: Path, texts: Iterable[str]) -> set[int]:
    """The tokens that occur in the texts."""
    used: set[int] = set()
    tokenizers = [tokenizer for (tokenizer,) in _distinct_pairs(folder)]
    for batch in in_batches(texts, len):
        unique = list(dict.fromkeys(batch))
        for tokenizer in tokenizers:
            for encoding in tokenizer.encode_batch(unique):
                used.update(encoding.ids)
    return used


def _encoded_by_both(
    old: Tokenizer, new: Tokenizer, texts: Iterable[str]
) -> Iterator[tuple[str, list[int], list[int]]]:
    """Every text with its tokens under two tokenizers."""
    for batch in in_batches(texts, len):
        for text, before, after in zip(batch, old.encode_batch(batch), new.encode_batch(batch), strict=True):
            yield text, before.ids, after.ids


def _named_ids(folder: Path) -> Iterator[int]:
    """The tokens that a model's configurations name, including transformers' defaults, which saving writes out.

    Raises:
        RequestError: a configuration names tokens in a way that the engine does not serve.
    """
    yield from _tokens_in(AutoConfig.from_pretrained(folder, local_files_only=True).to_dict())
    if (folder / "generation_config.json").is_file():
        yield from _tokens_in(GenerationConfig.from_pretrained(folder, local_files_only=True).to_dict())


def _tokens_in(fields: Mapping[str, Any]) -> Iterator[int]:
    for key, value in fields.items():
        if key in _NOT_SERVED and value:
            raise RequestError(f"the model's configuration has {key}, which cannot be served: remove it")
        if isinstance(value, dict):
            yield from _tokens_in(value)
        elif str(key).endswith("token_id") and value is not None:  # id2label has numbers as keys
            yield from value if isinstance(value, list) else [value]


def _renumber(config: PreTrainedConfig | GenerationConfig, plan: VocabularyPlan) -> None:
    """Put the new ids wherever a configuration names tokens."""
    for key, value in config.to_dict().items():
        renumbered = _renumbered(key, value, plan.new_ids)
        if renumbered != value:
            setattr(config, key, renumbered)


def _renumbered(key: str, value: Any, new_ids: Mapping[int, int]) -> Any:
    if value is None:
        return None
    if isinstance(value, dict):
        return {inner: _renumbered(inner, each, new_ids) for inner, each in value.items()}
    if str(key).endswith("token_id"):
        return [new_ids[i] for i in value] if isinstance(value, list) else new_ids[value]
    if key in _TOKENS:
        return [new_ids[i] for i in value if i in new_ids] or None
    if key in _TOKEN_SEQUENCES:
        kept = [sequence for sequence in value if all(i in new_ids for i in sequence)]
        return [[new_ids[i] for i in sequence] for sequence in kept] or None
    return value


def _trimmed_tensors(state: Mapping[str, Tensor], plan: VocabularyPlan) -> dict[str, Tensor]:
    """A model's tensors with fewer tokens; shared tensors stay shared."""
    kept = torch.tensor(plan.kept)
    rows: dict[int, Tensor] = {}
    result = dict(state)
    for name, tensor in state.items():
        if name.endswith(_ROWS):
            if tensor.data_ptr() not in rows:
                rows[tensor.data_ptr()] = tensor[kept.to(tensor.device)]
            result[name] = rows[tensor.data_ptr()]
        elif name == _COLUMNS:
            result[name] = tensor[:, kept.to(tensor.device)]
    return result


def _with_new_ids(vocabulary: Mapping[str, int], plan: VocabularyPlan) -> dict[str, int]:
    return {token: plan.new_ids[i] for token, i in vocabulary.items() if i in plan.new_ids}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
