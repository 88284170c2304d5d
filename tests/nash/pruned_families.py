"""Pruned models of every family, of random small shapes, in every form that must compute the same."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.mt5 import modeling_mt5
from transformers.models.t5 import modeling_t5
from transformers.models.umt5 import modeling_umt5

from model_store.model.config import layout_of
from model_store.model.layout import HIDDEN, Layout
from model_store.model.model import Model
from model_store.model.spec import ModelSpec, shortened
from nash.errors import RequestError
from nash.modeling.export import export
from nash.modeling.folders import save_model
from nash.structure.compaction import compact, shorten_decoder
from nash.structure.masking import HardenedGates, masked
from tests.tiny_families import CASES, FIRST_TOKEN, Case, build_tiny
from tests.tiny_models import TOKENIZER_CONFIG, build_tokenizer

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
NEW_TOKENS = 6
NEAR_TIE = 1e-4

FAMILIES: Mapping[str, Case] = {
    "t5": Case(config=T5Config, model=T5ForConditionalGeneration),
    "t5 v1.1": Case(
        config=T5Config,
        model=T5ForConditionalGeneration,
        changes={"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    **{name: CASES[name] for name in ("mt5", "umt5", "bart", "mbart", "marian", "pegasus", "m2m_100")},
    "marian, two vocabularies": CASES["marian, two vocabularies"],
}


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A teacher, what is kept of its decoder, and the decision on every part of what is left."""

    dense_dir: Path
    kept_layers: tuple[int, ...]
    hardened: HardenedGates

    @property
    def dense(self) -> ModelSpec:
        return Model.open(self.dense_dir).spec

    @contextmanager
    def masked_student(self) -> Iterator[PreTrainedModel]:
        """The uncut student under its mask."""
        student = shorten_decoder(read(self.dense_dir), self.kept_layers).eval()
        with masked(student, layout_of(shortened(self.dense, self.kept_layers)).sublayers(), self.hardened.mask()):
            yield student

    def by_definition(self) -> PreTrainedModel:
        """The uncut student; what every head, unit and hidden dimension hands on is multiplied by its value."""
        student = shorten_decoder(read(self.dense_dir), self.kept_layers)
        mask = dict(self.hardened.mask())
        hidden = mask.pop(HIDDEN, None)
        for name, values in mask.items():
            student.get_submodule(name).register_forward_pre_hook(partial(_multiply, values))
        if hidden is not None:
            _hook_hidden(student, hidden, layout_of(shortened(self.dense, self.kept_layers)))
        return student.eval()

    def compact(self) -> PreTrainedModel:
        student = shorten_decoder(read(self.dense_dir), self.kept_layers)
        return compact(student, self.dense, self.kept_layers, self.hardened).eval()


def _multiply(values: Tensor, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0] * values.repeat_interleave(inputs[0].shape[-1] // len(values))


def _hook_hidden(student: PreTrainedModel, hidden_D: Tensor, layout: Layout) -> None:
    """All that is added to the hidden states, and what the output matrix reads, is multiplied; norms see what is left.

    Modules are told apart by their kinds: a norm has one axis, an embedding is not a table of relative positions.
    """
    kept = hidden_D.nonzero().flatten()
    outs = {student.get_submodule(sublayer.out) for sublayer in layout.sublayers()}
    output = student.get_submodule(layout.output)
    output.register_forward_pre_hook(lambda _, inputs: (inputs[0] * hidden_D,))
    for name, module in student.named_modules():
        own = [parameter.shape for parameter in module.parameters(recurse=False)]
        if "Sinusoidal" in type(module).__name__:
            module.register_forward_hook(lambda _, __, out: out * (hidden_D != 0))
        elif module in outs or (isinstance(module, nn.Embedding) and "relative" not in name):
            module.register_forward_hook(lambda _, __, out: out * hidden_D)
        elif own and set(own) == {hidden_D.shape}:
            module.register_forward_hook(partial(_normed, kept, layout.spec.layer_norm_eps))


def _normed(kept: Tensor, eps: float, norm: Any, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    few, weight = inputs[0][..., kept], norm.weight[kept]
    if getattr(norm, "bias", None) is None:
        normed = F.rms_norm(few, weight.shape, weight, eps)
    else:
        normed = F.layer_norm(few, weight.shape, weight, norm.bias[kept], eps)
    return torch.zeros_like(inputs[0]).index_copy(-1, kept, normed)


def every_form(pruned: Pruned, folder: Path) -> Iterator[tuple[str, PreTrainedModel]]:
    """The forms of one pruned model by name, an oracle first; `folder`/compact and `folder`/dense are written."""
    yield "by definition", pruned.by_definition()
    with pruned.masked_student() as student:
        yield "masked", student
    compacted = pruned.compact()
    yield "compact", compacted
    save_model(compacted, pruned.dense_dir, folder / "compact", torch.get_default_dtype())
    yield "read back", read(folder / "compact")
    written = Model.open(folder / "compact")
    if written.spec.width < written.spec.d_model and layout_of(written.spec).biases:
        with pytest.raises(RequestError, match=r"its norms take the mean over all of them; use --format hf$"):
            export(written, "hf-dense", folder / "dense")
        return
    export(written, "hf-dense", folder / "dense")
    yield "exported", read(folder / "dense")


def read(folder: Path) -> PreTrainedModel:
    """What transformers makes of a directory."""
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.get_default_dtype()).eval()


def build(case: Case, folder: Path, *, seed: int = 0) -> Path:
    """A random dense model with a tokenizer, as every model directory has one."""
    build_tiny(case, folder, seed=seed)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return folder


def decided(spec: ModelSpec, kept_layers: tuple[int, ...], kept: Mapping[str, list[bool]], seed: int) -> HardenedGates:
    """A decision on the named sublayers, and on `HIDDEN` if it is named, with random values in (0.1, 1]."""
    generator, dtype = torch.Generator().manual_seed(seed), torch.get_default_dtype()
    names = [sublayer.out for sublayer in layout_of(shortened(spec, kept_layers)).sublayers()]
    bits = {name: torch.tensor(kept[name]) for name in [*names, HIDDEN] if name in kept}
    values = {name: 1 - 0.9 * torch.rand(len(b), generator=generator, dtype=dtype) for name, b in bits.items()}
    return HardenedGates(values=values, kept=bits)


@st.composite
def shapes(draw: st.DrawFn, case: Case) -> Case:
    """The case with other widths and numbers of layers, and with its family's switches one way or the other.

    The encoder is never the shallower stack: transformers 5.23 sizes T5's cache by the encoder's layers.
    """
    heads, head_dim, layers = draw(st.integers(1, 4)), draw(st.integers(4, 6)), draw(st.integers(1, 3))
    decoder_layers = draw(st.integers(1, layers))
    changes: dict[str, Any]
    if "d_kv" in case.fields:
        changes = {
            "d_model": draw(st.integers(3, 12)),
            "num_heads": heads,
            "d_kv": head_dim,
            "d_ff": draw(st.integers(1, 9)),
            "num_layers": layers,
            "num_decoder_layers": decoder_layers,
            "feed_forward_proj": draw(st.sampled_from(["relu", "gated-gelu", "gated-silu"])),
        }
    else:
        changes = {
            "d_model": heads * head_dim,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": draw(st.integers(1, 9)),
            "decoder_ffn_dim": draw(st.integers(1, 9)),
            "encoder_layers": layers,
            "decoder_layers": decoder_layers,
            "activation_function": draw(st.sampled_from(["relu", "gelu", "swish", "gelu_new"])),
            "scale_embedding": draw(st.booleans()),
        }
    return replace(case, changes={**case.changes, **changes, "tie_word_embeddings": draw(st.booleans())})


@st.composite
def decisions(draw: st.DrawFn, spec: ModelSpec) -> tuple[tuple[int, ...], HardenedGates]:
    """Decoder layers to keep, and which parts of what sublayers: all, none or some, on one stack or on both."""
    kept_layers = tuple(i for i in range(spec.dense_decoder_layers) if draw(st.booleans())) or (
        draw(st.integers(0, spec.dense_decoder_layers - 1)),
    )
    both = draw(st.booleans())
    kept: dict[str, list[bool]] = {}
    for sublayer in layout_of(shortened(spec, kept_layers)).sublayers():
        if sublayer.stack == "encoder" or both:
            some = st.lists(st.booleans(), min_size=sublayer.parts, max_size=sublayer.parts)
            kept[sublayer.out] = draw(st.just([False] * sublayer.parts) | some)
    if both and draw(st.booleans()):
        kept[HIDDEN] = draw(st.lists(st.booleans(), min_size=spec.d_model, max_size=spec.d_model))
        kept[HIDDEN][draw(st.integers(0, spec.d_model - 1))] = True
    return kept_layers, decided(spec, kept_layers, kept, draw(st.integers(0, 99)))


def batch(spec: ModelSpec) -> dict[str, Tensor]:
    """A padded batch of unequal sources, each with its end token."""
    generator = torch.Generator().manual_seed(1)
    most = min(spec.vocab_size, spec.target_vocab_size)
    sources = torch.randint(FIRST_TOKEN, most, (3, 9), generator=generator)
    mask = torch.ones_like(sources)
    mask[1, 4:], mask[2, 1:] = 0, 0
    for row, length in enumerate((9, 4, 1)):
        sources[row, length - 1] = spec.eos_id
    return {"input_ids": sources.masked_fill(mask == 0, spec.pad_id), "attention_mask": mask}


@torch.no_grad()
def logits(model: nn.Module, spec: ModelSpec) -> Tensor:
    """Scores [B, T, V] of a padded batch."""
    generator = torch.Generator().manual_seed(2)
    most = min(spec.vocab_size, spec.target_vocab_size)
    targets = torch.randint(FIRST_TOKEN, most, (3, 6), generator=generator)
    output: Tensor = model(**batch(spec), decoder_input_ids=targets).logits
    return output


def assert_same(found: Tensor, expected: Tensor, what: str = "") -> None:
    assert found.dtype == expected.dtype
    difference = float((found - expected).abs().max())
    assert difference <= TOLERANCES[found.dtype] * max(1.0, float(expected.abs().max())), f"{what}: {difference}"


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Answers [B, T] to a padded batch, and by how much the search preferred its choice."""

    tokens: Tensor
    margin: float


@torch.no_grad()
def generated(model: PreTrainedModel, spec: ModelSpec, *, num_beams: int = 1, use_cache: bool = True) -> Generated:
    """Answers of a forced length. Beams: the margin is that of the best hypothesis over the second."""
    output = model.generate(
        **batch(spec),
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=num_beams,
        num_return_sequences=min(num_beams, 2),
        use_cache=use_cache,
        output_scores=True,
        return_dict_in_generate=True,
    )
    if num_beams == 1:
        best = torch.stack(output.scores, dim=1).topk(2).values
        return Generated(tokens=output.sequences, margin=float((best[..., 0] - best[..., 1]).min()))
    scores = output.sequences_scores.view(-1, 2)
    return Generated(tokens=output.sequences[::2], margin=float((scores[:, 0] - scores[:, 1]).min()))


def assert_same_answers(found: Generated, expected: Generated, what: str = "") -> None:
    """Token for token, unless the reference itself was undecided."""
    assert expected.margin < NEAR_TIE or torch.equal(found.tokens, expected.tokens), what


@contextmanager
def float64() -> Iterator[None]:
    """Everything is built in float64, T5's norms too, which transformers computes in float32 at most."""
    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(modeling_t5, "T5LayerNorm", nn.RMSNorm),
            patch.object(modeling_mt5, "MT5LayerNorm", nn.RMSNorm),
            patch.object(modeling_umt5, "UMT5LayerNorm", nn.RMSNorm),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
