import pytest

from benchmarks.engine_cpu import step_weights
from benchmarks.scaling_model import Phase, barriers, longest_share, main, phases, step_ns
from benchmarks.shapes import NAMED

SMALL = NAMED["t5-small"]


def test_a_step_reads_all_weights() -> None:
    assert sum(phase.outputs * phase.inputs for phase in phases(SMALL, 1)) == step_weights(SMALL, SMALL.layers)


def test_barriers_of_the_operator() -> None:
    """Eight a layer with few rows, where self-attention has three, cross-attention three and the feed-forward two."""
    assert barriers(SMALL, 1) == 8 * 6 + 2  # the embedding's and the end's
    assert barriers(SMALL, 8) == 14 * 6 + 3


@pytest.mark.parametrize(("threads", "share"), [(1, 1), (2, 1 / 2), (12, 2 / 16), (16, 1 / 16), (64, 1 / 16)])
def test_one_row_has_sixteen_tiles_to_divide(threads: int, share: float) -> None:
    assert longest_share(Phase(512, 512, 1), threads) == share


def test_rows_are_divided_beyond_that() -> None:
    assert longest_share(Phase(512, 512, 32), 64) == 1 / 64


def test_more_threads_pay_only_with_enough_rows() -> None:
    assert step_ns(SMALL, 32, "int8", 64) < step_ns(SMALL, 32, "int8", 16)
    assert step_ns(SMALL, 1, "int8", 64) > step_ns(SMALL, 1, "int8", 32)


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["scaling_model"])
    main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * 2 * 3
