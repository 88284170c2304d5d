"""Refitting the matrices behind cut parts: an output matrix learns to compensate for the heads or units it lost.

Hardening closes gates that were not quite closed and leaves the rest of the network as it was. Every output matrix
behind a gate is refitted by least squares on calibration data, from the inputs that it still has to the outputs that
its sublayer gave before. The final fine-tune then starts from a better model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nash.int4.rounding import DAMPING


@dataclass
class NormalEquations:
    """The sums that least squares needs over any number of batches, of inputs [N, I] and remaining errors [N, O]."""

    gram_II: Tensor
    moment_IO: Tensor

    @classmethod
    def of_size(cls, inputs: int, outputs: int, device: str = "cpu") -> "NormalEquations":
        """Equations without data. Sums are in float64: a Gram matrix squares the condition number of its inputs."""
        gram_II, moment_IO = (torch.zeros(inputs, n, dtype=torch.float64, device=device) for n in (inputs, outputs))
        return cls(gram_II, moment_IO)

    def add(self, inputs_NI: Tensor, errors_NO: Tensor) -> None:
        """Add N more rows."""
        x = inputs_NI.double()
        self.gram_II += x.T @ x
        self.moment_IO += x.T @ errors_NO.double()

    def correction(self) -> Tensor:
        """The change dW [O, I] of the matrix that minimises |X dW^T - E|^2 + damping |dW|^2.

        Solved as (X^T X + l I) dW^T = X^T E with l = DAMPING times the mean of X^T X's diagonal.
        """
        damping = DAMPING * self.gram_II.diagonal().mean()
        if damping == 0:  # no rows, or every input is always zero: there is nothing to fit
            return torch.zeros_like(self.moment_IO.T)
        damped = self.gram_II + damping * torch.eye(len(self.gram_II)).to(self.gram_II)
        return torch.cholesky_solve(self.moment_IO, torch.linalg.cholesky(damped)).T
