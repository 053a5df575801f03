"""Universal logit distillation against the authors' code and its own laws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import objectives

GOLDEN = Path(__file__).parent.parent / "golden" / "llm_surveys"


def test_uld_is_that_of_the_authors() -> None:
    with np.load(GOLDEN / "uld_cross_tokenizer_original.npz", allow_pickle=False) as arrays:
        case = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    logits = case["student_logits"].clone().requires_grad_()
    means = []
    for row in range(len(logits)):
        answers = [case[f"{who}_labels"][row] != -100 for who in ("student", "teacher")]
        count = min(int(answer.sum()) for answer in answers)
        # From the logits that predict the first token of the answer.
        first, second = (int(answer.int().argmax()) - 1 for answer in answers)
        means.append(
            objectives.uld(
                logits[row, first : first + count],
                case["teacher_logits"][row, second : second + count],
            )
        )
    loss = torch.stack(means).mean()
    torch.testing.assert_close(loss.detach(), case["loss"].double(), rtol=1e-6, atol=1e-8)
    (gradient,) = torch.autograd.grad(loss, logits)
    # Their loss passes through float32.
    torch.testing.assert_close(gradient, case["grad_student_logits"], rtol=1e-6, atol=1e-8)


def test_uld_sees_no_order_and_no_missing_tokens() -> None:
    teacher = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    assert objectives.uld(teacher[..., order], teacher).item() == pytest.approx(0, abs=1e-6)
    small = torch.tensor([[[0.0, 0.0]]])
    large = torch.zeros(1, 1, 4)
    assert objectives.uld(small, large).item() == pytest.approx(1.0)
    assert objectives.uld(large, small).item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"\(1, 1, 2\).*\(2, 3, 7\)"):
        objectives.uld(small, teacher)
