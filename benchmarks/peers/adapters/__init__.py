"""One module a peer: how its files are made, how it is loaded, how it generates.

Each runs in its peer's own environment and imports nothing of ours that is not here, nor anything of its peer's before
it is asked to do something. A module has

    PACKAGES                                      what its results depend on, for their versions
    prepare(model, made, dtype)                   writes what `load` wants beside the model into the folder `made`
    load(model, made, dtype, threads)             gives a `Generator`

where `model` is a folder as transformers writes it.
"""

from typing import Protocol


class Generator(Protocol):
    """A loaded model."""

    def generate(self, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy continuations of `new_tokens` tokens each; all sources are equally long and arrive together."""
