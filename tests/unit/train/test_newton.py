"""Newton's method against a solved system, a function without a Hessian's help, and what rounding hides."""

import pytest
import torch

from labelwright.errors import DataError
from labelwright.train.newton import Local, minimise


def quadratic(matrix: torch.Tensor, wanted: torch.Tensor, diagonal: torch.Tensor):
    def at(x: torch.Tensor) -> Local:
        off = matrix @ x
        return Local(float(x @ off / 2 - wanted @ x), off - wanted, lambda v: matrix @ v, diagonal)

    return at


def test_minimise__solves_a_system_whatever_the_diagonal_says() -> None:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=g)
    matrix, wanted = root @ root.T + torch.eye(6), torch.randn(6, generator=g)
    for diagonal in (matrix.diagonal(), torch.ones(6), torch.zeros(6)):
        found = minimise(quadratic(matrix, wanted, diagonal), torch.zeros(6), least_gradient=1e-5)
        torch.testing.assert_close(found, torch.linalg.solve(matrix, wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("start", "most_asked"), [(3.0, 20), (100.0, 80)])
def test_minimise__shortens_steps_that_go_too_far(start: float, most_asked: int) -> None:
    """sqrt(1 + x^2): a whole step from 3 leads to -27, one from 100 to minus a million."""
    n_asked = 0

    def at(x: torch.Tensor) -> Local:
        nonlocal n_asked
        n_asked += 1
        root = (1 + x.square()).sqrt()
        curvature = 1 / root**3
        return Local(float(root.sum()), x / root, lambda v: curvature * v, curvature)

    assert abs(float(minimise(at, torch.tensor([start]), least_gradient=1e-4))) < 1e-3
    assert n_asked < most_asked


def test_minimise__ends_where_float32_sees_no_descent() -> None:
    """A gradient that never falls below what is asked for, because of its own rounding."""

    def at(x: torch.Tensor) -> Local:
        return Local(1e6 + float(x.square().sum()), 2 * x + 1e-3, lambda v: 2 * v, torch.full_like(x, 2.0))

    assert torch.isfinite(minimise(at, torch.tensor([1.0]), least_gradient=1e-9)).all()


def test_local__sums() -> None:
    one = Local(1.0, torch.tensor([2.0]), lambda v: 3 * v, torch.tensor([3.0]))
    both = one + one
    assert (both.value, both.gradient.item(), both.product(torch.ones(1)).item(), both.diagonal.item()) == (2, 4, 6, 6)


def test_minimise__ends_where_the_function_is_not_finite() -> None:
    def at(x: torch.Tensor) -> Local:
        return Local(float((x * torch.nan).sum()), x, lambda v: v, torch.ones(2))

    with pytest.raises(DataError, match="the loss is not finite"):
        minimise(at, torch.ones(2), least_gradient=1e-6)
