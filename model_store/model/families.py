"""How the families of encoder-decoders differ, other than in size.

| family  | norm  | place | final norm | embedding's norm | positions                | biases | logits' bias |
|---------|-------|-------|------------|------------------|--------------------------|--------|--------------|
| t5, mt5 | RMS   | first | yes        | no               | relative, in the scores  | no     | no           |
| umt5    | RMS   | first | yes        | no               | relative, by layer       | no     | no           |
| bart    | layer | last  | no         | yes              | learned, rows from 2     | yes    | yes          |
| mbart   | layer | first | yes        | yes              | learned, rows from 2     | yes    | yes          |
| marian  | layer | last  | no         | no               | sinusoidal, fixed number | yes    | yes          |
| pegasus | layer | first | yes        | no               | sinusoidal, fixed number | yes    | yes          |
| m2m_100 | layer | first | yes        | no               | sinusoidal, any number   | yes    | no           |

ByT5, v1.1, FLAN, MADLAD-400 and Aya-101 are T5; NLLB is M2M100. A stack whose norms come first has a final norm.
"""

import reprlib
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from model_store.errors import UnsupportedModelError

COMPACT_PREFIX = "nash_"  # precedes the family in a compact model's `model_type`

# The supported activations by their transformers names. Swish is SiLU.
ACTIVATIONS = MappingProxyType(
    {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_new", "silu": "silu", "swish": "silu"}
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts of one family. The token ids apply if the config names none."""

    layout: Literal["t5", "umt5", "bart"]  # which names the tensors and the config's keys have
    norm_first: bool = True
    embeds_norm: bool = False
    positions: Literal["relative", "learned", "sinusoidal", "endless"]
    logits_bias: bool = True
    pad_id: int
    eos_id: int
    decoder_start_id: int
    feed_forward: str = "relu"  # as `feed_forward_proj` or `activation_function` would call it
    starts_with_bos: bool = False  # if config.json names no start token: translators start with a language, named later
    scales_embedding: bool = False  # by d_model^0.5, if config.json does not say
    scales_logits: bool | None = None  # by d_model^-0.5; None: as config.json says
    may_have_two_vocabularies: bool = False  # one for sources, one for targets

    @property
    def sinusoids(self) -> bool:
        """Whether positions are computed, and not learned, before they are added to the embedding."""
        return self.positions in {"sinusoidal", "endless"}


_T5 = Family(layout="t5", positions="relative", logits_bias=False, pad_id=0, eos_id=1, decoder_start_id=0)
_BART = Family(
    layout="bart",
    norm_first=False,
    embeds_norm=True,
    positions="learned",
    pad_id=1,
    eos_id=2,
    decoder_start_id=2,
    feed_forward="gelu",
)

FAMILIES = MappingProxyType(
    {
        "t5": _T5,
        # mT5 never scales its logits, although its configs say that its matrices are tied.
        "mt5": replace(_T5, feed_forward="gated-gelu", scales_logits=False),
        # UMT5 always scales, as in transformers 5. Older versions trusted its configs, which say that nothing is tied.
        "umt5": replace(_T5, layout="umt5", feed_forward="gated-gelu", scales_logits=True),
        "bart": _BART,
        "mbart": replace(_BART, norm_first=True, decoder_start_id=0, starts_with_bos=True),
        "marian": replace(
            _BART,
            embeds_norm=False,
            positions="sinusoidal",
            pad_id=58100,
            eos_id=0,
            decoder_start_id=58100,
            may_have_two_vocabularies=True,
        ),
        "pegasus": replace(
            _BART, norm_first=True, embeds_norm=False, positions="sinusoidal", pad_id=0, eos_id=1, decoder_start_id=0
        ),
        "m2m_100": replace(
            _BART,
            norm_first=True,
            embeds_norm=False,
            positions="endless",
            logits_bias=False,
            feed_forward="relu",
            scales_embedding=True,
        ),
    }
)


def family_of(model_type: object) -> tuple[str, bool]:
    """The family that a `model_type` names, and whether it names the compact form.

    Raises:
        UnsupportedModelError: it is not a known family.
    """
    if isinstance(model_type, str):
        family = model_type.removeprefix(COMPACT_PREFIX)
        if family in FAMILIES:
            return family, family != model_type
    raise UnsupportedModelError(
        f"model_type {reprlib.repr(model_type)} is not supported: use a model of the family {', '.join(FAMILIES)} "
        f"(or one of them with the prefix {COMPACT_PREFIX!r}, as `nash prune` writes it)"
    )


def compact_model_type(family: str) -> str:
    """The `model_type` of a family's compact models."""
    return COMPACT_PREFIX + family
