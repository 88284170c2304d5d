"""Refitting what feeds on cut parts: an output matrix learns to make up for the heads or units that it lost.

Hardening closes gates that were not quite closed and leaves the rest of the network as it was. Every output matrix
behind a gate is refitted by least squares on calibration data, from the inputs that it still has to the outputs that
its sublayer gave before. After it comes the final fine-tune, which starts from a better place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nash.int4.rounding import DAMPING


@dataclass
class NormalEquations:
    """What least squares need of any number of batches: inputs [N, I] and the errors [N, O] that remain."""

    gram_II: Tensor
    moment_IO: Tensor

    @classmethod
    def of_size(cls, inputs: int, outputs: int) -> "NormalEquations":
        """No data yet. Sums are kept in float64: a Gram matrix squares the condition of what it is made of."""
        return cls(torch.zeros(inputs, inputs, dtype=torch.float64), torch.zeros(inputs, outputs, dtype=torch.float64))

    def add(self, inputs_NI: Tensor, errors_NO: Tensor) -> None:
        """Count in N more rows."""
        x = inputs_NI.double()
        self.gram_II += x.T @ x
        self.moment_IO += x.T @ errors_NO.double()

    def correction(self) -> Tensor:
        """The change dW [O, I] of the matrix that minimises |X dW^T - E|^2 + damping |dW|^2.

        Solved as (X^T X + l I) dW^T = X^T E with l = DAMPING times the mean of X^T X's diagonal.
        """
        damping = DAMPING * self.gram_II.diagonal().mean()
        if damping == 0:  # no rows, or every input is always zero: nothing can be told from it
            return torch.zeros_like(self.moment_IO.T)
        damped = self.gram_II + damping * torch.eye(len(self.gram_II), dtype=torch.float64)
        return torch.cholesky_solve(self.moment_IO, torch.linalg.cholesky(damped)).T
