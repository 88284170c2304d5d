"""Compact models in transformers, one class for each family: every layer has its own heads and feed-forward width.

Stock classes do the work; only what assumes equal layers is replaced. Importing this module makes transformers' Auto
classes know the models.
"""

import copy
from collections.abc import Callable, Mapping

from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    BartForConditionalGeneration,
    M2M100ForConditionalGeneration,
    MarianMTModel,
    MBartForConditionalGeneration,
    MT5ForConditionalGeneration,
    PegasusForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    T5ForConditionalGeneration,
)

from model_store.model.config import layout_of, spec_of
from model_store.model.families import compact_model_type
from model_store.model.spec import ModelSpec
from nash.modeling.bart import shrink_bart
from nash.modeling.configuration import (
    NashBartConfig,
    NashM2M100Config,
    NashMarianConfig,
    NashMBartConfig,
    NashMT5Config,
    NashPegasusConfig,
    NashT5Config,
)
from nash.modeling.t5 import shrink_t5

# Gives the layers of a fresh model of a layout the widths of a spec.
_SHRINK: Mapping[str, Callable[[PreTrainedModel, ModelSpec], None]] = {"t5": shrink_t5, "bart": shrink_bart}


class CompactModel(PreTrainedModel):
    """Turns a stock class into its compact form; goes before it in a class's bases."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        spec = spec_of(config.to_dict())
        _SHRINK[spec.facts.layout](self, spec)


class NashT5ForConditionalGeneration(CompactModel, T5ForConditionalGeneration):
    """A compact T5, v1.1, FLAN or ByT5."""

    config_class = NashT5Config


class NashMT5ForConditionalGeneration(CompactModel, MT5ForConditionalGeneration):
    """A compact mT5."""

    config_class = NashMT5Config


class NashBartForConditionalGeneration(CompactModel, BartForConditionalGeneration):
    """A compact BART."""

    config_class = NashBartConfig


class NashMBartForConditionalGeneration(CompactModel, MBartForConditionalGeneration):
    """A compact mBART."""

    config_class = NashMBartConfig


class NashMarianMTModel(CompactModel, MarianMTModel):
    """A compact Marian."""

    config_class = NashMarianConfig


class NashPegasusForConditionalGeneration(CompactModel, PegasusForConditionalGeneration):
    """A compact Pegasus."""

    config_class = NashPegasusConfig


class NashM2M100ForConditionalGeneration(CompactModel, M2M100ForConditionalGeneration):
    """A compact M2M100 or NLLB."""

    config_class = NashM2M100Config


_CLASSES: tuple[type[CompactModel], ...] = (
    NashT5ForConditionalGeneration,
    NashMT5ForConditionalGeneration,
    NashBartForConditionalGeneration,
    NashMBartForConditionalGeneration,
    NashMarianMTModel,
    NashPegasusForConditionalGeneration,
    NashM2M100ForConditionalGeneration,
)


def compact_class(spec: ModelSpec) -> type[CompactModel]:
    """The class of compact models of the shape's family."""
    wanted = compact_model_type(spec.family)
    return next(model for model in _CLASSES if model.config_class.model_type == wanted)


def stock_class(spec: ModelSpec) -> type[PreTrainedModel]:
    """transformers' own class of the shape's family."""
    return compact_class(spec).__bases__[-1]


def compact_config(spec: ModelSpec, dense: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model of shape `spec` that was cut from one with the configuration `dense`."""
    model = compact_class(spec)
    fields = copy.deepcopy(dense.to_dict())
    fields.pop("model_type")
    fields["architectures"] = [model.__name__]
    fields |= layout_of(spec).config
    return model.config_class(**fields, **spec.layer_config())


for _model in _CLASSES:
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModelForSeq2SeqLM.register(_model.config_class, _model, exist_ok=True)
