"""Sinusoidal positions. Axes: P positions, D model width, W wavelengths.

Both kinds are float32, whatever the model computes in: the models were trained that way.
"""

import math

import torch
from torch import Tensor


def sinusoidal_positions(count: int, width: int) -> Tensor:
    """Marian's and Pegasus's table [P, D]: the sines of all wavelengths, then the cosines.

    Column j of the interleaved table of Vaswani et al. 2017 (sec. 3.5) has the wavelength of j // 2.
    """
    exponent_D = 2 * (torch.arange(width, dtype=torch.float64) // 2) / width
    angle_PD = torch.arange(count, dtype=torch.float64)[:, None] / 10000**exponent_D
    return torch.cat((angle_PD[:, 0::2].sin(), angle_PD[:, 1::2].cos()), dim=1).float()


def fairseq_positions(first: int, count: int, width: int) -> Tensor:
    """M2M100's table [P, D] of `count` positions from `first` on: sines, cosines, and a zero if D is odd.

    The order of float32 operations is that of transformers, so the rounding agrees bit for bit.
    """
    wavelengths = width // 2
    frequency_W = torch.exp(torch.arange(wavelengths).float() * -(math.log(10000) / (wavelengths - 1)))
    angle_PW = torch.arange(first, first + count).float()[:, None] * frequency_W[None]
    nothing_P0 = torch.zeros(count, width % 2)
    return torch.cat((angle_PW.sin(), angle_PW.cos(), nothing_P0), dim=1)
