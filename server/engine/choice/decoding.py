"""How one sequence is decoded, derived once from its parameters."""

from collections.abc import Collection

from server.engine.choice.beam import BeamSearch
from server.engine.choice.logits import Rules
from server.engine.interface.parameters import GenerationParameters


class Decoding:
    """A sequence's parameters and what follows from them, and its beam search if it has one."""

    def __init__(self, parameters: GenerationParameters, eos_ids: Collection[int]) -> None:
        """`eos_ids` are the model's end tokens."""
        self.parameters = parameters
        self.rules = Rules.of(parameters, eos_ids)
        self.eos_ids = frozenset(self.rules.eos_ids)
        self.search = BeamSearch(parameters, self.rules.eos_ids) if parameters.num_beams > 1 else None
        # Several samples are ranked by their log-probability, so it is needed.
        self.logprobs = parameters.logprobs or (self.search is None and parameters.rows > 1)
        self.top_n = parameters.top_n_tokens
        self.free = not (parameters.do_sample or self.search or self.logprobs or self.top_n)

    def plain_at(self, length: int) -> bool:
        """Whether a row with a history of `length` tokens wants only its likeliest token."""
        return self.free and not self.rules.apply_at(length)

    def processed_at(self, length: int) -> bool:
        """Whether the scores of a row with a history of `length` tokens are changed before the choice."""
        return self.parameters.do_sample or self.rules.apply_at(length)

    def plain_steps(self, length: int) -> int:
        """For how many steps a row with a history of `length` tokens wants only its likeliest token."""
        return self.rules.steps_without(length) if self.free else 0
