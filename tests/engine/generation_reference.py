"""Whole generations of transformers' `generate` and of the engine, by the same parameters."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.results import Hypothesis
from tests.engine.reference import NEAR_TIE


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What transformers generated: one answer, or several beams, best first."""

    tokens: list[list[int]]
    scores: list[float] | None  # of beams
    margins: list[float] | None  # of a greedy answer: by how much each token beat the second best, all processors done


def arguments(parameters: GenerationParameters) -> dict[str, Any]:
    """The same parameters for `generate`."""
    fields = dataclasses.asdict(parameters)
    for ours in ("prefix_ids", "logprobs", "top_n_tokens", "ignore_eos", "seed"):
        del fields[ours]
    fields["bad_words_ids"] = [list(word) for word in fields.pop("bad_words")] or None
    fields["forced_eos_token_id"] = list(fields.pop("forced_eos_token_ids")) or None
    fields["suppress_tokens"] = list(fields["suppress_tokens"]) or None
    fields["begin_suppress_tokens"] = list(fields["begin_suppress_tokens"]) or None
    fields["min_new_tokens"] = fields["min_new_tokens"] or None
    return fields


@torch.inference_mode()
def generate_reference(model: PreTrainedModel, source: list[int], parameters: GenerationParameters | None) -> Reference:
    """What transformers makes of one source, alone; without parameters, as the model's own defaults want it."""
    start: int = model.generation_config.decoder_start_token_id
    prompt = [start, *(parameters.prefix_ids if parameters else ())]
    output = model.generate(
        torch.tensor([source]),
        attention_mask=torch.ones(1, len(source), dtype=torch.long),
        decoder_input_ids=torch.tensor([prompt]),
        **(arguments(parameters) if parameters else {}),
        output_scores=True,
        return_dict_in_generate=True,
    )
    eos = model.generation_config.eos_token_id
    ends = set(eos if isinstance(eos, list) else [eos])
    answers = []
    for row in output.sequences[:, len(prompt) :].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:end])
    if output.get("sequences_scores") is not None:
        return Reference(tokens=answers, scores=output.sequences_scores.tolist(), margins=None)
    best_two = torch.stack(output.scores, dim=1)[0].topk(2).values
    margins = (best_two[:, 0] - best_two[:, 1]).nan_to_num(posinf=torch.inf).tolist()
    return Reference(tokens=answers, scores=None, margins=margins)


class Comparison:
    """Compares hypotheses with references; where the reference itself was undecided they may differ, and it counts."""

    def __init__(self) -> None:
        self.compared = 0
        self.undecided = 0

    def check(self, ours: list[Hypothesis], reference: Reference) -> None:
        self.compared += 1
        if reference.scores is None:
            self._check_greedy(ours[0].tokens, reference)
        else:
            self._check_beams(ours, reference)

    def _check_greedy(self, tokens: list[int], reference: Reference) -> None:
        assert reference.margins is not None
        for ours, theirs, margin in zip(tokens, reference.tokens[0], reference.margins, strict=False):
            if ours != theirs:
                assert margin < NEAR_TIE, f"{tokens} is not {reference.tokens[0]}"
                self.undecided += 1
                return
        assert len(tokens) == len(reference.tokens[0]), f"{tokens} is not {reference.tokens[0]}"

    def _check_beams(self, ours: list[Hypothesis], reference: Reference) -> None:
        assert reference.scores is not None
        assert len(ours) == len(reference.tokens)
        for mine, score in zip(ours, reference.scores, strict=True):
            assert mine.score is not None
            assert abs(mine.score - score) < NEAR_TIE * max(1.0, abs(score)), f"{ours} is not {reference}"
        if [mine.tokens for mine in ours] != reference.tokens:  # the scores agree: two answers are as good
            self.undecided += 1
