"""UMT5's layout: T5's, but that every self-attention has a table of relative positions of its own."""

from dataclasses import replace

from model_store.model.layout import Kind, Stack, SublayerNames
from model_store.model.t5 import T5Layout


class UMT5Layout(T5Layout):
    """A table comes and goes with its layer; where no head is left there is none."""

    def sublayer(self, stack: Stack, layer: int, kind: Kind) -> SublayerNames:
        """T5's, and the table beside a self-attention's matrices."""
        names = super().sublayer(stack, layer, kind)
        return replace(names, bias_table=self._table(stack, layer)) if kind == "self_attention" else names

    def bias_table(self, stack: Stack) -> None:
        """Layers share none."""
        del stack
