"""Fewer tokens in a model and its tokenizer; the same numbers for those that stay."""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import (
    BartTokenizer,
    MBartTokenizer,
    NllbTokenizer,
    PegasusTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Tokenizer,
)

from model_store.model.config import spec_of
from model_store.model.model import Model
from model_store.model.spec import ModelSpec
from model_store.store import Store
from model_store.version.source import check_publishable
from nash.errors import RequestError
from nash.measuring.figures import Latency
from nash.modeling.folders import load_tokenizer, save_model
from nash.structure.compaction import compact, shorten_decoder
from nash.vocabulary.tokenizer_file import document_of
from nash.vocabulary.trimming import (
    VocabularyPlan,
    check_texts,
    measure_coverage,
    plan_vocabulary,
    trim_model,
    trim_vocabulary,
    write_tokenizer,
)
from server.engine.engine import Engine
from server.engine.interface.config import EngineConfig
from server.engine.interface.parameters import GenerationParameters
from tests.nash.command_line import nash
from tests.nash.known_costs import set_costs
from tests.nash.pruned_families import FAMILIES, assert_same, decisions, float64, read, shapes
from tests.nash.task_tokenizers import bpe_model, byte_level, lines, metaspace_bpe, trained, unigram
from tests.nash.tiny_training import task_rows
from tests.tiny_families import FIRST_TOKEN, VOCAB_SIZE, Case, build_tiny

ONE_VOCABULARY = [name for name in FAMILIES if name != "marian, two vocabularies"]
NEW_TOKENS = 6
T5_CONFIG = {
    "model_type": "t5",
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 8,
    "num_layers": 1,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def word(token: int) -> str:
    return f"w{token}"


def text(tokens: Sequence[int]) -> str:
    return " ".join(map(word, tokens))


def build(case: Case, folder: Path, *, seed: int = 0) -> Path:
    """A random model whose tokens are the words w0, w1 and so on."""
    build_tiny(case, folder, seed=seed)
    spec = Model.open(folder).spec
    vocabulary = {word(i): i for i in range(spec.vocab_size)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=word(spec.eos_id)))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {word(spec.eos_id)}", special_tokens=[(word(spec.eos_id), spec.eos_id)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": word(spec.pad_id),
        "eos_token": word(spec.eos_id),
        "unk_token": word(spec.eos_id),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def logits(model: PreTrainedModel, sources: Tensor, targets: Tensor) -> Tensor:
    """Scores [B, T, V]."""
    mask = torch.ones_like(sources)
    scores: Tensor = model.eval()(input_ids=sources, attention_mask=mask, decoder_input_ids=targets).logits
    return scores


def renumbered(plan: VocabularyPlan, ids: Tensor) -> Tensor:
    return torch.tensor([[plan.new_ids[int(i)] for i in row] for row in ids])


def assert_exact(model: PreTrainedModel, trimmed: PreTrainedModel, plan: VocabularyPlan) -> None:
    """On random sources and targets of kept tokens."""
    generator, kept = torch.Generator().manual_seed(0), torch.tensor(plan.kept)
    sources, targets = (kept[torch.randint(len(kept), size, generator=generator)] for size in ((3, 7), (3, 5)))
    expected = logits(model, sources, targets)[..., list(plan.kept)]
    assert_same(logits(trimmed, renumbered(plan, sources), renumbered(plan, targets)), expected)


def pruned(data: st.DataObject, dense: PreTrainedModel) -> PreTrainedModel:
    spec = spec_of(dense.config.to_dict())
    kept_layers, hardened = data.draw(decisions(spec))
    return compact(shorten_decoder(dense, kept_layers), spec, kept_layers, hardened)


def is_tied(model: PreTrainedModel) -> bool:
    return model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("name", ONE_VOCABULARY)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
def test_what_is_kept_has_the_same_logits_and_embeddings(name: str, data: st.DataObject) -> None:
    """In dense models and in compact ones, in both precisions, before and after a save."""
    case = data.draw(shapes(FAMILIES[name]))
    tokens = data.draw(st.lists(st.integers(FIRST_TOKEN, VOCAB_SIZE - 1), min_size=1, max_size=12))
    with tempfile.TemporaryDirectory() as directory, float64() if data.draw(st.booleans()) else nullcontext():
        folder, out = build(case, Path(directory) / "dense"), Path(directory) / "trimmed"
        plan, spec = plan_vocabulary(Model.open(folder), [text(tokens)]), Model.open(folder).spec
        assert set(tokens) <= set(plan.kept)
        assert len(plan.kept) < VOCAB_SIZE
        write_tokenizer(folder, out / "tokenizer", plan)
        dense = read(folder)
        for model in (dense, pruned(data, dense)):
            trimmed = trim_model(model, plan)
            assert is_tied(trimmed) == is_tied(model)
            rows = model.get_input_embeddings().weight[list(plan.kept)]
            assert torch.equal(trimmed.get_input_embeddings().weight, rows)
            assert_exact(model, trimmed, plan)
            save_model(trimmed, out / "tokenizer", out / "model", torch.get_default_dtype())
            assert_exact(model, read(out / "model"), plan)
            found = Model.open(out / "model").spec
            assert (found.vocab_size, found.dense_vocab_size) == (len(plan.kept), VOCAB_SIZE)
            assert found.compact
            for token in ("pad_id", "eos_id", "decoder_start_id"):
                assert getattr(found, token) == plan.new_ids[getattr(spec, token)]


@pytest.mark.parametrize("name", ONE_VOCABULARY)
def test_answers_of_kept_tokens_are_the_same(name: str, tmp_path: Path) -> None:
    """By transformers and by the engine."""
    folder = build(FAMILIES[name], tmp_path / "dense")
    sources = [[FIRST_TOKEN + 2 * i, 30 - i, 11 + i, Model.open(folder).spec.eos_id] for i in range(4)]
    parameters = GenerationParameters(max_new_tokens=NEW_TOKENS)
    answers = [
        sequence.tokens for sequence in Engine.load(Model.open(folder), EngineConfig()).generate(sources, parameters)
    ]
    trim_vocabulary(Model.open(folder), tmp_path / "trimmed", list(map(text, sources + answers)), {})
    plan = plan_vocabulary(Model.open(folder), map(text, sources + answers))
    check_publishable(tmp_path / "trimmed")
    assert Model.open(tmp_path / "trimmed").spec.vocab_size == len(plan.kept) < VOCAB_SIZE
    new_sources = [[plan.new_ids[i] for i in source] for source in sources]
    engine = Engine.load(Model.open(tmp_path / "trimmed"), EngineConfig())
    found = [sequence.tokens for sequence in engine.generate(new_sources, parameters)]
    assert found == [[plan.new_ids[i] for i in answer] for answer in answers]
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    expected = read(folder).generate(torch.tensor(sources), **settings)
    from_transformers = read(tmp_path / "trimmed").generate(torch.tensor(new_sources), **settings)
    assert from_transformers.tolist() == renumbered(plan, expected).tolist()
    codec = load_tokenizer(tmp_path / "trimmed")
    assert [codec.decode(tokens) for tokens in found] == [load_tokenizer(folder).decode(tokens) for tokens in answers]


def test_configurations_name_tokens_by_their_new_ids(tmp_path: Path) -> None:
    folder = build(FAMILIES["bart"], tmp_path / "dense")
    path = folder / "generation_config.json"
    named = {
        "eos_token_id": [2, 20],
        "forced_bos_token_id": 30,
        "suppress_tokens": [5, 9],
        "begin_suppress_tokens": [9],
        "bad_words_ids": [[5, 7], [5, 9], [7]],
        "max_new_tokens": 9,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | named))
    plan = plan_vocabulary(Model.open(folder), [text([5, 7])])
    assert plan.kept == (0, 1, 2, 5, 7, 20, 30)
    trim_vocabulary(Model.open(folder), tmp_path / "trimmed", [text([5, 7])], {})
    found = json.loads((tmp_path / "trimmed" / "generation_config.json").read_text())
    assert (found["eos_token_id"], found["forced_bos_token_id"]) == ([2, 5], 6)
    assert (found["suppress_tokens"], found["bad_words_ids"]) == ([3], [[3, 4], [4]])
    assert "begin_suppress_tokens" not in found
    assert found["max_new_tokens"] == 9
    config = json.loads((tmp_path / "trimmed" / "config.json").read_text())
    assert (config["vocab_size"], config["dense_vocab_size"]) == (7, VOCAB_SIZE)


def with_config(tokenizer: PreTrainedTokenizerBase | Tokenizer, folder: Path, *, rows: int | None = None) -> Path:
    """A folder with a tokenizer and the configuration of a T5 with so many rows, without weights."""
    folder.mkdir(exist_ok=True)
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(str(folder / "tokenizer.json"))
        names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        tokenizer.save_pretrained(folder)
    size = max(load_tokenizer(folder).get_vocab().values()) + 1 if rows is None else rows
    (folder / "config.json").write_text(json.dumps({**T5_CONFIG, "vocab_size": size}))
    return folder


@pytest.mark.parametrize("kind", ["unigram", "byte-level"])
def test_other_texts_are_counted(kind: str, tmp_path: Path) -> None:
    texts, others = lines()[:50], [*lines()[:2], lines()[900] + " ☃"]
    folder, out = with_config(trained(kind), tmp_path / "dense", rows=750), tmp_path / "trimmed"
    plan = plan_vocabulary(Model.open(folder), texts)
    report = plan.report
    assert report.dense == 750
    assert report.kept == len(plan.kept) == report.data + report.special + report.merged + report.fallback < 700
    assert (report.merged > 0) == (kind == "byte-level")
    write_tokenizer(folder, out, plan)
    check_texts(folder, out, plan, texts)
    coverage = measure_coverage(folder, out, plan, others)
    assert (coverage.texts, coverage.unchanged) == (3, 2)
    assert coverage.kept < coverage.tokens < coverage.tokens_now
    assert coverage.unknown == coverage.unknown_now == (1 if kind == "unigram" else 0)
    assert str(coverage).startswith("66.7% of 3 texts tokenize as before")


def unigram_vocabulary(*special: str) -> list[tuple[str, float]]:
    return [(piece, score) for piece, score in document_of(unigram(special))["model"]["vocab"]]


CLASSES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "t5": lambda: T5Tokenizer(
        vocab=[*unigram_vocabulary("<pad>", "</s>", "<unk>"), *((f"<extra_id_{i}>", 0.0) for i in reversed(range(100)))]
    ),
    "t5 without sentinels": lambda: T5Tokenizer(vocab=unigram_vocabulary("<pad>", "</s>", "<unk>"), extra_ids=0),
    "bart": lambda: BartTokenizer(**bpe_model(byte_level, "<s>", "<pad>", "</s>", "<unk>", "<mask>")),
    "mbart": lambda: MBartTokenizer(
        vocab=unigram_vocabulary("<s>", "<pad>", "</s>", "<unk>"), src_lang="en_XX", tgt_lang="it_IT"
    ),
    "nllb": lambda: NllbTokenizer(
        **bpe_model(metaspace_bpe, "<s>", "<pad>", "</s>", "<unk>"), src_lang="eng_Latn", tgt_lang="ita_Latn"
    ),
    "pegasus": lambda: PegasusTokenizer(
        vocab=unigram_vocabulary("<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 9)), "<unk>")
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_classes_of_transformers_read_what_is_written(name: str, tmp_path: Path) -> None:
    folder, out = with_config(CLASSES[name](), tmp_path / "dense"), tmp_path / "trimmed"
    texts = lines()[:100]
    plan = plan_vocabulary(Model.open(folder), texts)
    assert len(plan.kept) < 0.9 * plan.report.dense
    write_tokenizer(folder, out, plan)
    check_texts(folder, out, plan, texts)
    before, after = load_tokenizer(folder), load_tokenizer(out)
    assert type(before) is type(after) is not PreTrainedTokenizerBase
    for special in before.all_special_tokens:
        assert after.convert_tokens_to_ids(special) == plan.new_ids[before.convert_tokens_to_ids(special)]
    if name in ("mbart", "nllb"):
        before.src_lang = after.src_lang = "fr_XX" if name == "mbart" else "fra_Latn"
        assert after(texts[0]).input_ids == [plan.new_ids[i] for i in before(texts[0]).input_ids]


def test_files_that_number_tokens(tmp_path: Path) -> None:
    folder, out = with_config(trained("byte-level"), tmp_path / "dense"), tmp_path / "trimmed"
    vocabulary = load_tokenizer(folder).get_vocab()
    path = folder / "tokenizer_config.json"
    added = {str(vocabulary[token]): {"content": token, "special": True} for token in ("<pad>", "</s>", "<unk>")}
    without_rows = {str(len(vocabulary) + 5): {"content": "<beyond>", "special": True}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": added | without_rows}))
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 0}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>"}))
    (folder / "merges.txt").write_text("a b")
    plan = plan_vocabulary(Model.open(folder), ["zebra"])
    write_tokenizer(folder, out, plan)
    assert json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"] == added, "they come first"
    assert json.loads((out / "added_tokens.json").read_text()) == {"<pad>": 0}
    assert json.loads((out / "special_tokens_map.json").read_text()) == {"pad_token": "<pad>"}
    assert not (out / "merges.txt").exists(), "it has merges that are gone"


def test_a_text_that_would_change_is_named(tmp_path: Path) -> None:
    folder, out = with_config(trained("unigram"), tmp_path / "dense"), tmp_path / "trimmed"
    plan = plan_vocabulary(Model.open(folder), lines()[:3])
    write_tokenizer(folder, out, plan)
    with pytest.raises(RequestError, match="the text 'Unseen' would not be tokenized as before"):
        check_texts(folder, out, plan, [*lines()[:3], "Unseen", "Another"])


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    folder = build(FAMILIES["marian, two vocabularies"], tmp_path / "dense")
    with pytest.raises(RequestError, match="separate vocabularies for sources and targets, which cannot be trimmed"):
        plan_vocabulary(Model.open(folder), ["w5"])


def test_tokens_beyond_the_model_are_refused(tmp_path: Path) -> None:
    folder = with_config(trained("unigram"), tmp_path / "dense", rows=300)
    with pytest.raises(RequestError, match=r"uses the token id 3\d\d, but its model has a vocabulary of 300"):
        plan_vocabulary(Model.open(folder), lines()[:50])


def test_a_configuration_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    folder = build(FAMILIES["t5"], tmp_path / "dense")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_words_ids": [[5]]}))
    with pytest.raises(RequestError, match="has force_words_ids, which cannot be served: remove it"):
        plan_vocabulary(Model.open(folder), ["w5"])


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    folder = build(FAMILIES["t5"], tmp_path / "dense")
    plan = plan_vocabulary(Model.open(folder), ["w5 w6"])
    with pytest.raises(ValueError, match=f"the model has {len(plan.kept)} tokens, but the plan is for {VOCAB_SIZE}"):
        trim_model(trim_model(read(folder), plan), plan)


def prune_flags(folder: Path) -> list[object]:
    """A dense model and a task that needs 8 of its tokens; what `nash prune` is to do with them."""
    build(FAMILIES["t5"], folder / "dense")
    tokens = {letter: FIRST_TOKEN + 2 * i for i, letter in enumerate("abcdef")}
    spelt = [[text([tokens[letter] for letter in each]) for each in (r.source, r.targets[0])] for r in task_rows(40)]
    rows = [{"source": source, "target": target} for source, target in spelt]
    for split, chosen in {"train": rows[:30], "validation": rows[30:]}.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    flags = ["--model", folder / "dense", "--name", "words", "--max-steps", 2, "--trim-vocab", "--publish-slower"]
    flags += ["--train", folder / "train.jsonl", "--eval", folder / "validation.jsonl"]
    return [*flags, "--out", folder / "out", "--store", folder / "store", "--json"]


def test_prune_trims_first(tmp_path: Path) -> None:
    """Dense and pruned side by side in the store, each with its own tokenizer; run again, nothing is done twice."""
    flags = [*prune_flags(tmp_path), "--decoder-layers", 1]
    outcome = nash("prune", *flags)
    document = outcome.document()
    assert (document["dense_vocab_size"], document["vocab_size"]) == (VOCAB_SIZE, 8)
    assert f"8 of {VOCAB_SIZE} tokens are kept" in outcome.err
    assert "validation: 100.0% of 20 texts tokenize as before" in outcome.err
    store = Store(tmp_path / "store")
    for alias, size in {"dense": VOCAB_SIZE, "pruned": 8}.items():
        folder = store.checkout(f"words@{alias}")
        assert Model.open(folder).spec.vocab_size == len(load_tokenizer(folder)) == size
    spec = store.resolve("words@pruned").manifest.spec
    assert (spec.vocab_size, spec.dense_vocab_size) == (8, VOCAB_SIZE)
    assert store.resolve("words@dense").manifest.spec.dense_vocab_size is None
    written = (tmp_path / "out" / "trimmed" / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "model")
    assert nash("prune", *flags).document()["digest"] == document["digest"]
    assert (tmp_path / "out" / "trimmed" / "model.safetensors").stat().st_mtime_ns == written


def test_an_asked_speed_counts_the_trimmed_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape that is measured has it; the dense model beside them has all tokens."""

    def by_layers_and_tokens(spec: ModelSpec) -> Latency:
        """A millisecond a decoder layer, a tenth of one a token of the vocabulary."""
        encode_ms, decode_ms = 1 - spec.encoder_sparsity, len(spec.decoder) + spec.target_vocab_size / 10
        return Latency(encoder_ms=encode_ms, step_ms=1.0, total_ms=encode_ms + decode_ms)

    machine = set_costs(monkeypatch, by_layers_and_tokens)
    document = nash("prune", *prune_flags(tmp_path), "--speedup", 2.2).document()
    assert document["vocab_size"] == 8
    assert len(machine.measured) >= 2
    for side_by_side in machine.measured:
        sizes = [spec.vocab_size for spec in side_by_side]
        assert sizes == [VOCAB_SIZE, *[8] * (len(sizes) - 1)]
    assert len(Model.open(tmp_path / "out" / "model").spec.decoder) == 1
