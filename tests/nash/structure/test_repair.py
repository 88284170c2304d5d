"""The least squares behind a repair, against torch's own."""

import torch

from nash.int4.rounding import DAMPING
from nash.structure.repair import NormalEquations


def test_the_correction_is_that_of_damped_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    x_NI = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    error_NO = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    equations = NormalEquations.of_size(6, 3)
    for rows in (slice(0, 20), slice(20, 50)):
        equations.add(x_NI[rows], error_NO[rows])
    damping = DAMPING * x_NI.square().sum(0).mean()
    # Damping is so many more rows: its root on the diagonal, with no error to correct.
    more_II = damping.sqrt() * torch.eye(6, dtype=torch.float64)
    wanted_IO = torch.linalg.lstsq(
        torch.cat([x_NI, more_II]), torch.cat([error_NO, torch.zeros(6, 3, dtype=torch.float64)])
    ).solution
    assert torch.allclose(equations.correction(), wanted_IO.T, atol=1e-12)


def test_nothing_to_learn_from_changes_nothing() -> None:
    equations = NormalEquations.of_size(2, 3)
    assert torch.equal(equations.correction(), torch.zeros(3, 2, dtype=torch.float64))
    equations.add(torch.zeros(4, 2), torch.ones(4, 3))
    assert torch.equal(equations.correction(), torch.zeros(3, 2, dtype=torch.float64))
