"""UMT5's layout: like T5's, except that every self-attention has its own table of relative positions."""

from dataclasses import replace

from model_store.model.layout import Kind, Stack, SublayerNames
from model_store.model.t5 import T5Layout


class UMT5Layout(T5Layout):
    """A layer's table is pruned with its self-attention: if no head is left, there is no table."""

    def sublayer(self, stack: Stack, layer: int, kind: Kind) -> SublayerNames:
        """T5's names, plus the table beside a self-attention's matrices."""
        names = super().sublayer(stack, layer, kind)
        return replace(names, bias_table=self._table(stack, layer)) if kind == "self_attention" else names

    def bias_table(self, stack: Stack) -> None:
        """None: layers share no table."""
        del stack
