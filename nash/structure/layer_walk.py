"""A stack of a model, run layer by layer over data, so that what comes before a layer is computed once."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_store.model.layout import Stack, Sublayer
from nash.data.examples import IGNORED
from nash.modeling.layers import layers_of
from nash.training.objective import decoder_inputs

Batches = Sequence[dict[str, Tensor]]
_Call = tuple[list[Any], dict[str, Any]]  # of a layer: its arguments after the hidden states, and those by name


class LayerWalk:
    """Stands before one layer of a stack, from the first on; `advance` goes to the next.

    Weights of the layer, and of those after it, may change in between; `advance` takes them as they are then. The
    other stack, and what a stack computes for all of its layers (masks, relative positions), are those of the
    beginning. That is kept: 65,536 tokens of short texts take megabytes, of T5-base's longest texts two gigabytes.
    """

    @torch.no_grad()
    def __init__(self, model: PreTrainedModel, stack: Stack, batches: Batches) -> None:
        model.eval()
        self.layer = 0
        self._model = model
        self._layers = layers_of(model, stack)
        self._real = [
            batch["attention_mask"].bool() if stack == "encoder" else batch["labels"] != IGNORED for batch in batches
        ]
        self._states: list[Tensor] = []  # of each batch, before the layer [B, L, D]
        self._calls: list[list[_Call]] = []  # by batch and layer
        for batch in batches:
            self._record(stack, batch)

    def _record(self, stack: Stack, batch: dict[str, Tensor]) -> None:
        """Keep what goes into the first layer, and what else each layer is called with, in a pass through the model."""
        calls: list[_Call] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            states, *others = args if args else (kwargs.pop("hidden_states"),)
            if not calls:
                self._states.append(states)
            calls.append((others, kwargs))

        with ExitStack() as hooks:
            for layer in self._layers:
                handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
                hooks.callback(handle.remove)
            if stack == "encoder":
                encoder = self._model.get_encoder()
                encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            else:
                self._model(**decoder_inputs(self._model.config, batch))
        self._calls.append(calls)

    @torch.no_grad()
    def passes(self, *sublayers: Sublayer) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """For each batch, and each of these sublayers of the layer, inputs [N, I] and outputs [N, O] of its output
        matrix at the N real positions.
        """
        matrices = [self._model.get_submodule(sublayer.out) for sublayer in sublayers]
        for number, real in enumerate(self._real):
            seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

            def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, seen: Any = seen) -> None:
                seen[module] = (inputs[0], output)

            with ExitStack() as hooks:
                for matrix in matrices:
                    hooks.callback(matrix.register_forward_hook(keep).remove)
                self._run(number)
            yield [
                (inputs.view(*real.shape, -1)[real], outputs.view(*real.shape, -1)[real])
                for inputs, outputs in (seen[matrix] for matrix in matrices)
            ]

    @torch.no_grad()
    def advance(self) -> None:
        """Run the layer and stand before the next one."""
        self._states = [self._run(number) for number in range(len(self._states))]
        self.layer += 1

    def _run(self, number: int) -> Tensor:
        others, named = self._calls[number][self.layer]
        found = self._layers[self.layer](self._states[number], *others, **named)
        states: Tensor = found if isinstance(found, Tensor) else found[0]
        return states
