import numpy as np
import pytest
import torch
import torch.nn.functional as F

from labelwright.errors import ConfigError, DataError
from labelwright.losses.classification import cross_entropy, soft_cross_entropy
from labelwright.losses.mixup import mixup


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_mixup__every_row_is_the_stated_average():
    x, targets = torch.rand(5, 3, 2, 2), torch.eye(5)
    mixed = mixup(x, targets, alpha=1.0, generator=seeded(3))
    assert sorted(mixed.permutation.tolist()) == list(range(5))
    assert 0 < mixed.lam < 1
    for row, partner in enumerate(mixed.permutation.tolist()):
        torch.testing.assert_close(mixed.x[row], mixed.lam * x[row] + (1 - mixed.lam) * x[partner])
        torch.testing.assert_close(mixed.targets[row], mixed.lam * targets[row] + (1 - mixed.lam) * targets[partner])


def test_mixup__labels_loss_equals_soft_target_loss():
    logits, labels = torch.randn(6, 4, generator=seeded(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    mixed = mixup(logits, labels, alpha=1.0, generator=seeded(1))
    assert mixed.targets is labels
    hard = mixed.lam * cross_entropy(logits, labels) + (1 - mixed.lam) * cross_entropy(
        logits, labels[mixed.permutation]
    )
    onehot = mixup(logits, F.one_hot(labels, 4).float(), alpha=1.0, generator=seeded(1)).targets
    assert hard.item() == pytest.approx(soft_cross_entropy(logits, onehot).item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_mixup__onehot_of_another_type_is_mixed_as_float32(dtype):
    onehot = torch.eye(4)
    expected = mixup(onehot, onehot, alpha=1.0, generator=seeded(1)).targets
    assert torch.equal(mixup(onehot, onehot.to(dtype), alpha=1.0, generator=seeded(1)).targets, expected)


def test_mixup__alpha_zero_leaves_the_batch():
    x = torch.rand(4, 2)
    mixed = mixup(x, torch.eye(4), alpha=0.0, generator=seeded(0))
    assert mixed.lam == 1.0
    assert torch.equal(mixed.x, x)
    assert torch.equal(mixed.targets, torch.eye(4))


def test_mixup__share_follows_its_beta():
    generator, x = seeded(0), torch.zeros(2, 1)
    shares = np.array([mixup(x, x, alpha=0.5, generator=generator).lam for _ in range(4000)])
    # Beta(1/2, 1/2): mean 1/2, variance 1/8, and P(lam < 1/4) = 1/3; four standard errors
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(1 / 8 / 4000)
    assert abs((shares < 0.25).mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / 4000)


def test_mixup__at_least_half():
    generator, x = seeded(0), torch.zeros(2, 1)
    shares = [mixup(x, x, alpha=0.5, generator=generator, at_least_half=True).lam for _ in range(200)]
    assert 0.5 <= min(shares) < 0.6
    assert max(shares) <= 1


def test_mixup__same_generator_same_batch():
    x = torch.rand(8, 2)
    one, two, other = (mixup(x, x, alpha=1.0, generator=seeded(s)) for s in (5, 5, 6))
    assert torch.equal(one.x, two.x)
    assert one.lam == two.lam != other.lam


def test_mixup__errors():
    with pytest.raises(ConfigError, match=r"alpha=-0\.1 is negative"):
        mixup(torch.zeros(2), torch.zeros(2), alpha=-0.1, generator=seeded(0))
    with pytest.raises(ConfigError, match="alpha=inf is negative or not finite"):
        mixup(torch.zeros(2), torch.zeros(2), alpha=float("inf"), generator=seeded(0))
    with pytest.raises(DataError, match="3 targets for 2 images"):
        mixup(torch.zeros(2), torch.zeros(3), alpha=1.0, generator=seeded(0))
