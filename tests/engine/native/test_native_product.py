"""One product of the native operator by itself: a decoder without layers, whose logits are its embeddings' products.

Axes: R rows, O outputs, I inputs.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from server.engine.native.arena import Arena
from server.engine.native.operator import library as native
from server.engine.native.rows import RowBuffer, make_workspace

pytestmark = pytest.mark.usefixtures("instruction_set")

DTYPES = {"float32": native.FLOAT32, "bfloat16": native.BFLOAT16, "int8": native.INT8}
ROWS = 17
# Multiples of what the sets take at once, and what is left over of each.
INPUTS = (1, 2, 3, 5, 15, 16, 30, 33, 64, 131)
OUTPUTS = (1, 16, 17, 32, 33, 100)
LARGEST_INPUTS = 1024
EPSILON = torch.finfo(torch.float32).eps


class Packed:
    """A matrix in the operator's form, and the memory that it points to."""

    def __init__(self, library: native.Library, weight_OI: Tensor, dtype: str, bias_O: Tensor | None = None) -> None:
        outputs, inputs = weight_OI.shape
        lanes = -(-outputs // native.TILE) * native.TILE
        arena = Arena()
        self.packed = arena.take(library.packed_bytes(outputs, inputs, DTYPES[dtype]), torch.int8)
        self.scales, self.offsets = arena.take(lanes, torch.float32), arena.take(lanes, torch.int32)
        self.bias = arena.take(lanes, torch.float32)
        pointers = (self.packed.data_ptr(), self.scales.data_ptr(), self.offsets.data_ptr())
        weight_OI = weight_OI.contiguous()
        library.pack(weight_OI.data_ptr(), outputs, inputs, DTYPES[dtype], *pointers)
        if bias_O is not None:
            self.bias[:outputs] = bias_O
        self.matrix = native.NativeMatrix(
            outputs=outputs,
            inputs=inputs,
            dtype=DTYPES[dtype],
            weights=pointers[0],
            scales=pointers[1],
            offsets=pointers[2],
            bias=None if bias_O is None else self.bias.data_ptr(),
        )


Product = Callable[[Packed, Tensor], Tensor]


@pytest.fixture
def library(instruction_set: str) -> native.Library:
    found = native.library()
    assert found is not None, instruction_set
    return found


@pytest.fixture
def product(library: native.Library) -> Iterator[Product]:
    """x [R, I] times a matrix, plus its bias, on two threads."""
    arena = Arena()
    pool = native.create_pool(library, 2)
    rows = RowBuffer(ROWS)
    workspace = make_workspace(
        arena,
        rows=ROWS,
        threads=2,
        width=LARGEST_INPUTS,
        widest_attention=1,
        widest_units=1,
        widest_input=LARGEST_INPUTS,
        longest_scores=16,
        head_dim=16,
    )

    def multiply(packed: Packed, x_RI: Tensor) -> Tensor:
        count, inputs = x_RI.shape
        table = arena.take(x_RI.numel(), torch.float32)
        table.copy_(x_RI.flatten())
        stack = native.Stack(
            width=inputs,
            head_dim=16,
            causal=1,
            embedding_scale=1.0,
            embedding=table.data_ptr(),
            unplaced_token=-1,
            output=packed.matrix,
        )
        each, zeros = list(range(count)), [0] * count
        rows.fill(tokens=each, positions=zeros, slots=each, lengths=zeros, memory_slots=each, wanted_rows=each)
        out = torch.empty(count, packed.matrix.outputs)
        library.decode(stack, rows.structure, workspace, pool, out.data_ptr())
        return out

    yield multiply
    library.pool_destroy(pool)


def random_matrices() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Weights [O, I], biases [O] and rows [R, I] of every size; rows and outputs of very different size."""
    draw = torch.Generator().manual_seed(0)
    for inputs in INPUTS:
        for outputs in OUTPUTS:
            weight_OI = torch.randn(outputs, inputs, generator=draw) * 10 ** torch.randn(outputs, 1, generator=draw)
            x_RI = torch.randn(ROWS, inputs, generator=draw) * 10 ** torch.randn(ROWS, 1, generator=draw)
            yield weight_OI, torch.randn(outputs, generator=draw), x_RI


def quantized(numbers: Tensor, steps: Tensor) -> Tensor:
    """Whole numbers of the last axis by steps that stand before it; the nearest, ties to even."""
    return (numbers * steps[..., None]).round()


def int8_product(weight_OI: Tensor, bias_O: Tensor, x_RI: Tensor) -> Tensor:
    """What int8 means, to the last bit: the sums are whole numbers, everything around them float32."""
    weight_peak_O, x_peak_R = weight_OI.abs().amax(1), x_RI.abs().amax(1)
    weight_OI = quantized(weight_OI, 127 / weight_peak_O)
    step_R = x_peak_R / 127
    sums_RO = quantized(x_RI, 1 / step_R).double() @ weight_OI.double().T
    return sums_RO.float() * ((weight_peak_O / 127) * step_R[:, None]) + bias_O


def test_int8_is_exact_on_every_set(library: native.Library, product: Product) -> None:
    for weight_OI, bias_O, x_RI in random_matrices():
        ours = product(Packed(library, weight_OI, "int8", bias_O), x_RI)
        assert torch.equal(ours, int8_product(weight_OI, bias_O, x_RI)), weight_OI.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_are_as_near_as_float32_s_can_be(
    library: native.Library, product: Product, dtype: str, instruction_set: str
) -> None:
    for weight_OI, bias_O, x_RI in random_matrices():
        ours = product(Packed(library, weight_OI, dtype, bias_O), x_RI)
        if dtype == "bfloat16":
            weight_OI = weight_OI.bfloat16().float()
            if instruction_set.endswith("bf16"):  # its instruction takes both sides in bfloat16
                x_RI = x_RI.bfloat16().float()
        weight_OI, bias_O, x_RI = weight_OI.double(), bias_O.double(), x_RI.double()
        size_RO = x_RI.abs() @ weight_OI.abs().T + bias_O.abs()
        assert ((ours - (x_RI @ weight_OI.T + bias_O)).abs() <= (x_RI.shape[1] + 1) * EPSILON * size_RO).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_rows_gives_what_each_gives_alone(library: native.Library, product: Product, dtype: str) -> None:
    draw = torch.Generator().manual_seed(1)
    for outputs, inputs in ((100, 131), (33, 64), (16, 2)):
        packed = Packed(library, torch.randn(outputs, inputs, generator=draw), dtype)
        x_RI = torch.randn(ROWS, inputs, generator=draw)
        alone = torch.cat([product(packed, x_RI[row : row + 1]) for row in range(ROWS)])
        for count in range(2, ROWS + 1):
            assert torch.equal(product(packed, x_RI[:count]), alone[:count])


@pytest.mark.parametrize("inputs", [1, 3, 4, 6, 130, LARGEST_INPUTS])
def test_the_largest_whole_numbers_do_not_saturate(library: native.Library, product: Product, inputs: int) -> None:
    """-128 as well, which packing never makes of a weight; activations go from -127 to 127."""
    outputs, lanes, quads = 40, 64, -(-inputs // 4)
    packed = Packed(library, torch.zeros(outputs, inputs), "int8")
    draw = torch.Generator().manual_seed(2)
    weight_OI = torch.randint(-128, 128, (outputs, inputs), generator=draw)
    weight_OI[:4] = torch.tensor([-128, 127, -128, 127])[:, None]
    weight_OI[2:4, ::2] = torch.tensor([127, -128])[:, None]
    padded = torch.zeros(lanes, 4 * quads, dtype=torch.int8)
    padded[:outputs, :inputs] = weight_OI
    packed.packed.view(lanes // 32, quads, 32, 4).copy_(padded.view(lanes // 32, 32, quads, 4).transpose(1, 2))
    packed.scales.fill_(1)
    packed.offsets.copy_(-128 * padded.int().sum(1))
    x_RI = torch.randint(-127, 128, (ROWS, inputs), generator=draw)
    x_RI[:, 0] = 127  # so that a step is one
    x_RI[0], x_RI[1, 1:] = 127, -127
    ours = product(packed, x_RI.float())
    assert torch.equal(ours, (x_RI @ weight_OI.T).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_or_hardly_a_number(library: native.Library, product: Product, dtype: str) -> None:
    draw = torch.Generator().manual_seed(3)
    packed = Packed(library, torch.randn(37, 43, generator=draw), dtype)
    plain_RI = torch.randn(9, 43, generator=draw)
    x_RI = plain_RI.clone()
    x_RI[1, 42], x_RI[3, 0], x_RI[4, 17] = torch.nan, torch.inf, -torch.inf
    x_RI[6] *= 1e-41  # below the smallest normal number
    x_RI[7] = 0
    ours, plain = product(packed, x_RI), product(packed, plain_RI)
    assert ours[1].isnan().all()
    assert not ours[3:5].isfinite().any()
    assert (ours[6].abs() < 1e-37).all()
    assert not ours[7].any()
    untouched = [0, 2, 5, 8]
    assert torch.equal(ours[untouched], plain[untouched])
