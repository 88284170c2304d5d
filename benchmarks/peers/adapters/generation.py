"""Code shared by transformers and the packages that use its `generate`."""

from typing import Any


class Transformers:
    """A model with transformers' `generate`, greedy and of forced length."""

    def __init__(self, model: Any, threads: int) -> None:
        self._model, self._threads = model, threads

    def generate(self, sources: list[list[int]], new_tokens: int) -> list[list[int]]:
        """See `Generator`."""
        import torch

        torch.set_num_threads(self._threads)  # process-wide; another generator may have changed it
        ids = torch.tensor(sources)
        with torch.inference_mode():
            made = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
            )
        tokens: list[list[int]] = made[:, 1:].tolist()  # the first one is the decoder's start
        return tokens
