"""The losses against torch's own and against loops over tokens."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nash.data.examples import IGNORED
from nash.training import losses

B, T, V, D = 3, 5, 11, 6


@pytest.fixture
def labels_BT() -> Tensor:
    labels = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(0))
    labels[0, 3:] = IGNORED
    labels[2, 1:] = IGNORED
    return labels


def scores(seed: int) -> Tensor:
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_mean(labels_BT: Tensor, smoothing: float) -> None:
    expected = F.cross_entropy(
        scores(1).flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )
    torch.testing.assert_close(losses.cross_entropy(scores(1), labels_BT, None, smoothing=smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("numbers_at_once", [1, 3 * V, 2**21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_cross_entropy_is_torchs(
    labels_BT: Tensor, numbers_at_once: int, dtype: torch.dtype, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows are taken at once; padding has none, whatever stands there."""
    monkeypatch.setattr(losses, "_NUMBERS_AT_ONCE", numbers_at_once)
    student = scores(1).to(dtype).requires_grad_()
    kept = labels_BT != IGNORED
    expected_loss = 3 * F.cross_entropy(student[kept].float(), labels_BT[kept], label_smoothing=smoothing)
    (expected,) = torch.autograd.grad(expected_loss, student)
    with torch.no_grad():
        student[0, 4], student[2, 3] = torch.inf, torch.nan
    loss = 3 * losses.cross_entropy(student, labels_BT, None, smoothing=smoothing)
    (found,) = torch.autograd.grad(loss, student)
    assert found.dtype == dtype
    assert (found[~kept] == 0).all()
    tolerance = 1e-6 if dtype is torch.float32 else 4e-3
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_micro_batches_add_up(labels_BT: Tensor) -> None:
    """Parts of very different numbers of tokens, divided by the whole's, add up to the whole."""
    items = (labels_BT != IGNORED).sum()
    student, teacher = scores(1), scores(2)
    on_rows: list[Callable[[slice, Tensor | None], Tensor]] = [
        lambda rows, n: losses.cross_entropy(student[rows], labels_BT[rows], n),
        lambda rows, n: losses.prediction_distillation(student[rows], teacher[rows], labels_BT[rows], 2.0, n),
        lambda rows, n: losses.hidden_error(student[rows], teacher[rows], labels_BT[rows] != IGNORED, n),
        lambda rows, n: losses.share_of_update(labels_BT[rows], n),
    ]
    for loss in on_rows:
        parts = torch.stack([loss(slice(i, i + 1), items) for i in range(B)])
        torch.testing.assert_close(parts.sum(), loss(slice(None), items))
        torch.testing.assert_close(parts.sum(), loss(slice(None), None))
        assert parts.std() > 0.01


def test_kl_of_equal_scores_is_zero(labels_BT: Tensor) -> None:
    assert float(losses.prediction_distillation(scores(1), scores(1), labels_BT, 2.0, None)) == pytest.approx(
        0, abs=1e-6
    )
    assert float(losses.prediction_distillation(scores(1), scores(1) + 3, labels_BT, 2.0, None)) == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("numbers_at_once", [1, 3 * V, 2**21])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_kl_is_autograds(
    labels_BT: Tensor, numbers_at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows are taken at once; padding has none, whatever stands there."""
    monkeypatch.setattr(losses, "_NUMBERS_AT_ONCE", numbers_at_once)
    student, teacher = scores(1).to(dtype).requires_grad_(), scores(2).to(dtype)
    with torch.no_grad():
        student[0, 4], teacher[2, 3] = torch.inf, torch.nan
    kept = labels_BT != IGNORED
    student_NV, teacher_NV = (F.log_softmax(logits[kept].float() / 2.0, dim=-1) for logits in (student, teacher))
    (expected,) = torch.autograd.grad(
        3 * 4.0 * F.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True) / kept.sum(), student
    )
    loss = losses.prediction_distillation(student, teacher, labels_BT, 2.0, None)
    (found,) = torch.autograd.grad(3 * loss, student)
    assert found.dtype == dtype
    assert (found[~kept] == 0).all()
    tolerance = 1e-6 if dtype is torch.float32 else 4e-3
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("numbers_at_once", [1, 3 * V, 2**21])
def test_both_losses_of_the_same_scores(
    labels_BT: Tensor, numbers_at_once: int, temperature: float, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own weight, they have the gradient that autograd finds for their sum."""
    monkeypatch.setattr(losses, "_NUMBERS_AT_ONCE", numbers_at_once)
    student, teacher, kept = scores(1).requires_grad_(), scores(2), labels_BT != IGNORED
    used_up = teacher.clone()
    both = losses.task_and_prediction(
        student, used_up, labels_BT, temperature, None, weights=(0.3, 5.0), smoothing=smoothing
    )
    student_NV, teacher_NV = (F.log_softmax(logits[kept] / temperature, dim=-1) for logits in (student, teacher))
    divergence = F.kl_div(student_NV, teacher_NV, reduction="sum", log_target=True) / kept.sum()
    expected_task = F.cross_entropy(student[kept], labels_BT[kept], label_smoothing=smoothing)
    expected_prediction = temperature**2 * divergence
    torch.testing.assert_close(both.task, 0.3 * expected_task)
    torch.testing.assert_close(both.prediction, 5 * expected_prediction)
    torch.testing.assert_close(both.loss, both.task + both.prediction)
    assert not both.task.requires_grad
    (expected,) = torch.autograd.grad(7 * (0.3 * expected_task + 5 * expected_prediction), student)
    (found,) = torch.autograd.grad(7 * both.loss, student)
    torch.testing.assert_close(found, expected)
    assert found.data_ptr() == used_up.data_ptr(), "another matrix of this size was made"


def test_without_a_gradient_the_teachers_scores_stay(labels_BT: Tensor) -> None:
    teacher = scores(2)
    losses.prediction_distillation(scores(1), teacher, labels_BT, 1.0, None)
    assert torch.equal(teacher, scores(2))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_by_loops(labels_BT: Tensor, temperature: float) -> None:
    """T^2 sum_v p (ln p - ln q) with the teacher's p, a mean over real tokens."""
    student, teacher = scores(1), scores(2)
    terms = []
    for b in range(B):
        for t in range(T):
            if labels_BT[b, t] != IGNORED:
                p = torch.softmax(teacher[b, t] / temperature, dim=0)
                q = torch.softmax(student[b, t] / temperature, dim=0)
                terms.append(temperature**2 * (p * (p.log() - q.log())).sum())
    loss = losses.prediction_distillation(student, teacher, labels_BT, temperature, None)
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_padding_changes_nothing(labels_BT: Tensor) -> None:
    """Neither what stands at padding positions, nor how many there are."""
    kept = labels_BT != IGNORED
    noisy = torch.where(kept[..., None], scores(1), torch.full((), 1e4))
    wider = torch.cat([noisy, torch.full((B, 4, V), 7.0)], dim=1)
    wider_labels = F.pad(labels_BT, (0, 4), value=IGNORED)
    teacher = F.pad(scores(2), (0, 0, 0, 4), value=-1e4)
    torch.testing.assert_close(
        losses.cross_entropy(wider, wider_labels, None), losses.cross_entropy(scores(1), labels_BT, None)
    )
    torch.testing.assert_close(
        losses.prediction_distillation(wider, teacher, wider_labels, 2.0, None),
        losses.prediction_distillation(scores(1), scores(2), labels_BT, 2.0, None),
    )
    torch.testing.assert_close(
        losses.hidden_error(wider, teacher, wider_labels != IGNORED, None),
        losses.hidden_error(scores(1), scores(2), kept, None),
    )


def test_hidden_error_by_hand() -> None:
    student = torch.tensor([[[1.0, 2.0], [3.0, 3.0], [9.0, 9.0]]])
    teacher = torch.tensor([[[2.0, 0.0], [3.0, 5.0], [1.0, 1.0]]])
    mask = torch.tensor([[True, True, False]])
    expected = (1.0 + 4.0) / 4.0 + 4.0 / 34.0
    assert float(losses.hidden_error(student, teacher, mask, None)) == pytest.approx(expected / 2)
    assert float(losses.hidden_error(student, teacher, mask, 9)) == pytest.approx(expected / 9)


def test_hidden_error_has_no_scale(labels_BT: Tensor) -> None:
    student, teacher, real = scores(1), scores(2), labels_BT != IGNORED
    by_position = torch.linspace(0.01, 100.0, T)[:, None]
    torch.testing.assert_close(
        losses.hidden_error(by_position * student, by_position * teacher, real, None),
        losses.hidden_error(student, teacher, real, None),
    )


def test_hidden_error_of_a_teacher_of_zeros_is_finite() -> None:
    states, mask = torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    assert float(losses.hidden_error(states, states, mask, None)) == 0
    assert torch.isfinite(losses.hidden_error(states + 1, states, mask, None))


def test_half_precision_is_summed_in_single(labels_BT: Tensor) -> None:
    loss = losses.cross_entropy(scores(1).bfloat16(), labels_BT, None)
    assert loss.dtype == torch.float32
