import math

import pytest
import torch
import torch.nn.functional as F

from labelwright.errors import ConfigError, DataError
from labelwright.losses.prototypes import prototype_collapse, prototype_logits, prototype_loss, update_prototypes

B, C, D = 7, 4, 5
LABELS = torch.tensor([2, 0, 2, -1, 2, 0, 1])  # class 3 has no row
RELIABLE = torch.tensor([True, False, True, True, False, False, True])
PERMUTATION = torch.tensor([3, 0, 6, 1, 5, 2, 4])


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(rows, seed):
    return F.normalize(draw(rows, D, seed=seed), dim=1)


def targets_of(rows=B, seed=5):
    targets = draw(rows, C, seed=seed).softmax(dim=1)
    targets[0] = torch.eye(C)[1]  # a hard target: 0 log 0 is 0
    return targets


def loss_of(feats, *, targets=None, prototypes=None, is_reliable=RELIABLE, **rest):
    targets = targets_of() if targets is None else targets
    return prototype_loss(
        feats, units(C, 1) if prototypes is None else prototypes, targets, is_reliable=is_reliable, **rest
    )


def update_oracle(prototypes, feats, labels, decay, where):
    """One feature after another, then the norm."""
    mu = [list(row) for row in prototypes.tolist()]
    for z, label, kept in zip(feats.tolist(), labels.tolist(), where.tolist(), strict=True):
        if kept and label >= 0:
            mu[label] = [decay * m + (1 - decay) * x for m, x in zip(mu[label], z, strict=True)]
    norms = [math.sqrt(sum(m * m for m in row)) for row in mu]
    return [[m / norm if norm else 0.0 for m in row] for row, norm in zip(mu, norms, strict=True)]


def row_oracle(z, prototypes, target, reliable, temperature):
    sims = [sum(a * b for a, b in zip(z, mu, strict=True)) / temperature for mu in prototypes]
    total = sum(math.exp(s) for s in sims)
    probs = [math.exp(s) / total for s in sims]
    if reliable:
        return sum(t * math.log(t / p) for t, p in zip(target, probs, strict=True) if t > 0)
    return sum((p - t) ** 2 for t, p in zip(target, probs, strict=True)) / len(target)


def loss_oracle(feats, prototypes, targets, lam=1.0, permutation=None, temperature=0.3):
    permutation = range(len(feats)) if permutation is None else permutation.tolist()
    prototypes, targets = prototypes.tolist(), targets.tolist()
    return [
        lam * row_oracle(z, prototypes, targets[i], reliable, temperature)
        + (1 - lam) * row_oracle(z, prototypes, targets[permutation[i]], reliable, temperature)
        for i, (z, reliable) in enumerate(zip(feats.tolist(), RELIABLE.tolist(), strict=True))
    ]


def two_means(values):
    """The mean of the reliable rows plus that of the others."""
    pairs = list(zip(values, RELIABLE.tolist(), strict=True))
    parts = [[value for value, reliable in pairs if reliable == side] for side in (True, False)]
    return sum(sum(part) / len(part) for part in parts)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999, 1.0])
def test_update_prototypes__oracle(decay):
    prototypes, feats = 3 * units(C, 1), units(B, 0)
    where = torch.tensor([True, True, True, True, False, True, True])
    expected = torch.tensor(update_oracle(prototypes, feats, LABELS, decay, where), dtype=torch.float64)
    got = update_prototypes(prototypes, feats, LABELS, decay=decay, where=where)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_update_prototypes__later_rows_weigh_more():
    rows = torch.eye(D)[:2].double()
    first, second = (
        update_prototypes(torch.zeros(1, D).double(), z, torch.tensor([0, 0])) for z in (rows, rows[[1, 0]])
    )
    assert first[0, 1] / first[0, 0] == pytest.approx(1 / 0.999, rel=1e-12)
    assert torch.equal(first[0, [1, 0]], second[0, :2])


def test_update_prototypes__many_rows_of_one_class_in_float32():
    """4096 rows, as a gathered batch has: the closed form must not lose the early ones."""
    feats = F.normalize(draw(4096, D, seed=3) + 1, dim=1)
    labels = torch.zeros(4096, dtype=torch.int64)
    expected = torch.tensor(update_oracle(units(2, 1), feats, labels, 0.999, labels == 0))
    got = update_prototypes(units(2, 1).float(), feats.float(), labels, decay=0.999)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_update_prototypes__zero_without_rows_stays_zero():
    got = update_prototypes(torch.zeros(C, D), units(B, 0).float(), LABELS)
    assert got[3].tolist() == [0.0] * D
    assert got[:3].norm(dim=1).tolist() == pytest.approx([1.0] * 3, rel=1e-6)


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_update_prototypes__rows_left_out_are_not_there(poison):
    prototypes, feats = units(C, 1), units(B, 0)
    where = torch.arange(B) != 4
    bad = feats.masked_fill((~where | (LABELS < 0))[:, None], poison)
    kept = torch.tensor([0, 1, 2, 5, 6])
    got = update_prototypes(prototypes, bad, LABELS, decay=0.9, where=where)
    expected = update_prototypes(prototypes, feats[kept], LABELS[kept], decay=0.9)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)
    assert not torch.allclose(got, update_prototypes(prototypes, feats, LABELS, decay=0.9))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_update_prototypes__a_label_beyond_the_classes_is_left_out(decay):
    feats = units(B, 0).index_fill(0, torch.tensor([1]), math.nan)
    beyond = LABELS.index_fill(0, torch.tensor([1]), C)
    got = update_prototypes(units(C, 1), feats, beyond, decay=decay)
    expected = update_prototypes(units(C, 1), units(B, 0), LABELS, decay=decay, where=beyond < C)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=0)


def test_update_prototypes__no_rows_only_gives_the_norm():
    prototypes = 3 * units(C, 1)
    got = update_prototypes(prototypes, torch.zeros(0, D).double(), torch.zeros(0, dtype=torch.int64))
    torch.testing.assert_close(got, units(C, 1), rtol=1e-12, atol=0)


def test_update_prototypes__no_gradient_and_nothing_changed_in_place():
    prototypes, feats = units(C, 1), units(B, 0).requires_grad_()
    got = update_prototypes(prototypes, feats, LABELS, decay=0.5)
    assert not got.requires_grad
    assert torch.equal(prototypes, units(C, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_prototypes__half_precision_is_computed_in_float32(dtype):
    prototypes, feats = units(C, 1).float(), units(B, 0).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = update_prototypes(prototypes, feats.to(dtype), LABELS, decay=0.7)
    assert got.dtype == torch.float32
    expected = update_prototypes(prototypes.double(), feats.double(), LABELS, decay=0.7)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)


def test_prototype_logits__cosines_over_temperature():
    feats, prototypes = units(B, 0), units(C, 1)
    expected = [
        [sum(a * b for a, b in zip(z, m, strict=True)) / 0.3 for m in prototypes.tolist()] for z in feats.tolist()
    ]
    torch.testing.assert_close(
        prototype_logits(feats, prototypes), torch.tensor(expected).double(), rtol=1e-6, atol=1e-6
    )
    halved = prototype_logits(feats, prototypes, temperature=0.6)
    torch.testing.assert_close(2 * halved, prototype_logits(feats, prototypes))


def test_prototype_logits__float32_under_autocast():
    feats, prototypes = units(B, 0).bfloat16(), units(C, 1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = prototype_logits(feats, prototypes)
    assert got.dtype == torch.float32
    # float32 rounding; bfloat16 would be off by 4e-3 / 0.3
    torch.testing.assert_close(got.double(), prototype_logits(feats.double(), prototypes.double()), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("lam", "permutation"), [(1.0, None), (1.0, PERMUTATION), (0.73, PERMUTATION), (0.0, PERMUTATION)]
)
def test_prototype_loss__oracle(lam, permutation):
    feats = units(B, 0)
    rows = loss_oracle(feats, units(C, 1), targets_of(), lam, permutation)
    mixing = {"lam": lam, "permutation": permutation}
    assert loss_of(feats, reduce="none", **mixing).tolist() == pytest.approx(rows, rel=1e-10)
    assert loss_of(feats, reduce="sum", **mixing).item() == pytest.approx(sum(rows), rel=1e-10)
    assert loss_of(feats, **mixing).item() == pytest.approx(two_means(rows), rel=1e-10)


def test_prototype_loss__zero_where_targets_are_met():
    feats = units(B, 0)
    met = prototype_logits(feats, units(C, 1)).softmax(dim=1)
    assert loss_of(feats, targets=met, reduce="none").abs().max().item() < 1e-12
    assert loss_of(feats).item() > 0.1


def test_prototype_loss__gradcheck():
    where = torch.tensor([True, True, False, True, True, True, True])
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.0, 1.0, 1.0], dtype=torch.float64)
    inputs = units(B, 0).requires_grad_(), units(C, 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, mu: loss_of(z, prototypes=mu, weights=weights, where=where, lam=0.6, permutation=PERMUTATION), inputs
    )


def test_prototype_loss__targets_are_constants():
    feats, targets = units(B, 0).requires_grad_(), targets_of().requires_grad_()
    loss_of(feats, targets=targets).backward()
    assert targets.grad is None
    assert torch.isfinite(feats.grad).all()
    assert feats.grad.abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prototype_loss__extreme_inputs(dtype):
    feats = (1e6 * units(B, 0)).to(dtype).requires_grad_()
    hard = torch.eye(C, dtype=dtype)[LABELS.clamp(min=0)]
    loss = loss_of(feats, targets=hard, prototypes=units(C, 1).to(dtype), reduce="none")
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(feats.grad).all()
    assert loss[~RELIABLE].max() <= 2 / C  # squared error is bounded
    assert loss[RELIABLE].max() > 1e4  # the divergence is not


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_prototype_loss__rows_left_out_are_not_there(poison):
    # 2 and its partner 6 trade places, so that no kept row has an excluded partner
    permutation, where = torch.tensor([1, 0, 6, 4, 3, 5, 2]), torch.tensor([1, 1, 0, 1, 1, 1, 0]).bool()
    feats, targets = units(B, 0), targets_of()
    bad = feats.masked_fill(~where[:, None], poison).requires_grad_()
    weights = torch.linspace(1, 2, B).double()
    rows = loss_oracle(feats, units(C, 1), targets, 0.7, permutation)
    loss = loss_of(
        bad,
        targets=targets.masked_fill(~where[:, None], poison),
        where=where,
        weights=weights.masked_fill(~where, math.nan),
        lam=0.7,
        permutation=permutation,
    )
    loss.backward()
    expected = 0.0
    for side in (True, False):
        of_side = [i for i in range(B) if where[i] and RELIABLE[i].item() is side]
        expected += sum(weights[i].item() * rows[i] for i in of_side) / sum(weights[i].item() for i in of_side)
    assert loss.item() == pytest.approx(expected, rel=1e-10)
    assert torch.isfinite(bad.grad).all()
    assert bad.grad[~where].abs().max() == 0
    assert bad.grad[where].abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("side", [True, False])
def test_prototype_loss__one_kind_only(side):
    feats, kind = units(B, 0), torch.full((B,), side)
    rows = [
        row_oracle(z, units(C, 1).tolist(), t, side, 0.3)
        for z, t in zip(feats.tolist(), targets_of().tolist(), strict=True)
    ]
    assert loss_of(feats, is_reliable=kind).item() == pytest.approx(sum(rows) / B, rel=1e-10)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_prototype_loss__nothing_kept_is_zero(reduce):
    feats = units(B, 0).requires_grad_()
    loss = loss_of(feats, where=torch.zeros(B, dtype=torch.bool), reduce=reduce)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(feats.grad, torch.zeros(B, D, dtype=torch.float64))


def test_prototype_loss__weight_two_is_row_twice():
    feats, twice = units(B, 0), torch.tensor([0, 1, 1, 2, 3, 4, 5, 6])
    weights = torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    expected = loss_of(feats[twice], targets=targets_of()[twice], is_reliable=RELIABLE[twice]).item()
    assert loss_of(feats, weights=weights).item() == pytest.approx(expected, rel=1e-12)
    assert loss_of(feats).item() != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows", [2, 3, 40])
def test_prototype_collapse__mean_over_pairs(rows):
    prototypes = draw(rows, D, seed=rows) + 0.5
    cosines = [F.cosine_similarity(prototypes[i], prototypes[j], dim=0).item() for i in range(rows) for j in range(i)]
    expected = pytest.approx(sum(cosines) / len(cosines), rel=1e-10)
    assert prototype_collapse(prototypes).item() == expected
    with_zeros = torch.cat([torch.zeros(3, D).double(), prototypes, torch.zeros(1, D).double()])
    assert prototype_collapse(with_zeros).item() == expected
    assert prototype_collapse(prototypes).shape == ()


def test_prototype_collapse__ends_of_its_range():
    assert prototype_collapse(units(1, 0).expand(100, D).float()).item() == pytest.approx(1, abs=1e-6)
    assert prototype_collapse(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])).item() == pytest.approx(-1, abs=1e-6)
    assert prototype_collapse(torch.eye(50)).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("prototypes", [torch.zeros(0, D), torch.zeros(4, D), torch.eye(D)[:1]])
def test_prototype_collapse__fewer_than_two_is_zero(prototypes):
    assert prototype_collapse(prototypes).item() == 0


def test_errors_name_what_does_not_fit():
    feats, prototypes = units(B, 0), units(C, 1)
    with pytest.raises(DataError, match=r"features \[7, 5\] and prototypes \[4, 3\] are not \[B, D\] and \[C, D\]"):
        prototype_logits(feats, prototypes[:, :3])
    with pytest.raises(DataError, match=r"labels has shape \[3\] for features \[7, 5\]"):
        update_prototypes(prototypes, feats, LABELS[:3])
    with pytest.raises(DataError, match=r"targets have shape \[7, 3\], logits \[7, 4\]"):
        loss_of(feats, targets=targets_of()[:, :3])
    for name in ("is_reliable", "where", "weights", "permutation"):
        with pytest.raises(DataError, match=rf"{name} has shape \[8\] for features \[7, 5\]"):
            loss_of(feats, **{name: torch.ones(8, dtype=torch.bool)})


def test_errors_name_settings_out_of_range():
    feats, prototypes = units(B, 0), units(C, 1)
    with pytest.raises(ConfigError, match=r"decay=1\.1 is not a share"):
        update_prototypes(prototypes, feats, LABELS, decay=1.1)
    with pytest.raises(ConfigError, match="temperature=0 is not positive"):
        loss_of(feats, temperature=0)
    with pytest.raises(ConfigError, match=r"lam=1\.2 is not a share"):
        loss_of(feats, lam=1.2, permutation=PERMUTATION)
    with pytest.raises(ConfigError, match=r"lam=0\.5 without a permutation"):
        loss_of(feats, lam=0.5)
    with pytest.raises(ConfigError, match="reduce='average' is unknown"):
        loss_of(feats, reduce="average")
