"""The error tree of the engine. Needs no torch, so the API process can import it.

Every message names the offending value and what to do about it; callers show it as it stands.
"""


class EngineError(Exception):
    """Base of every error that the engine raises on purpose."""


class BadRequestError(EngineError):
    """A sequence that cannot be run: empty or too long, or with a token outside the vocabulary."""


class BadParameterError(BadRequestError):
    """A generation parameter that cannot be, alone or with the others. Its caller may know it by another name."""

    def __init__(self, name: str, problem: str) -> None:
        """`name` as `GenerationParameters` has it; `problem` goes on from it and says what to do."""
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


class LoadError(EngineError):
    """A model that cannot be loaded: weights unlike their config, no such dtype, no memory for its cache."""
