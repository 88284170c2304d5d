"""The engine's error tree. Needs no torch, so the API process can import it.

Every message names the offending value and says what to do about it; callers show it unchanged.
"""


class EngineError(Exception):
    """Base of every error the engine raises on purpose."""


class BadRequestError(EngineError):
    """A sequence that cannot be run: empty or too long, or with a token outside the vocabulary."""


class BadParameterError(BadRequestError):
    """A generation parameter that is invalid, alone or with the others. The caller may know it by another name."""

    def __init__(self, name: str, problem: str) -> None:
        """`name` is the field of `GenerationParameters`; `problem` continues from it and says what to do."""
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


class LoadError(EngineError):
    """A model that cannot be loaded: weights that do not fit the config, an unknown dtype, no memory for its cache."""
