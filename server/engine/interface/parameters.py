"""How one generation is decoded."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class GenerationParameters:
    """How one generation is decoded; the names are transformers' where it has one, and so is what they do.

    The defaults change nothing: greedy decoding. What a model's own generation_config.json says comes in through
    `GenerationDefaults`.
    """

    max_new_tokens: int
    min_new_tokens: int = 0  # no end token before so many others
    ignore_eos: bool = False  # go on to max_new_tokens whatever comes: forced lengths, for measurements
    prefix_ids: tuple[int, ...] = ()  # stand after the decoder's start token; what is generated goes on from them

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    typical_p: float = 1.0
    seed: int | None = None  # None: drawn at admission

    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1  # so many of the beams, or so many samples

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # 0: n-grams may repeat
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not come
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()  # only as the first token that is not forced
    forced_bos_token_id: int | None = None  # the first token; no prefix stands before it, else it is not forced
    forced_eos_token_ids: tuple[int, ...] = ()  # the token at max_new_tokens is one of these
    renormalize_logits: bool = False

    logprobs: bool = False  # also give each token's natural-log probability, as the model said it before all the above
    top_n_tokens: int = 0  # also give so many of the model's best tokens at each position

    @property
    def prompt(self) -> int:
        """How many tokens the decoder is given before it generates any: its start token and the prefix."""
        return 1 + len(self.prefix_ids)

    @property
    def rows(self) -> int:
        """How many cache slots a generation owns: one a beam, or one a sample."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences
