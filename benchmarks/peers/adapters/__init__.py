"""One module per peer: how to make its files, load it and generate with it.

Each module runs in its peer's own environment. It imports none of our code from outside this package, and its peer's
packages only when it is asked to do something. A module has

    PACKAGES                                      packages that its results depend on, to report their versions
    prepare(model, made, dtype)                   writes what `load` needs besides the model into the folder `made`
    load(model, made, dtype, threads)             returns a `Generator`

where `model` is a folder as transformers writes it.
"""

from typing import Protocol


class Generator(Protocol):
    """A loaded model."""

    def generate(self, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Greedy continuations of `new_tokens` tokens each; all sources are equally long and arrive together."""
