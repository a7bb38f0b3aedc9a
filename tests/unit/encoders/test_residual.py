"""The residual adapter by its formula, its sizes, and float32 whatever goes in."""

import pytest
import torch
import torch.nn.functional as F

from labelwright.encoders.residual import ResidualAdapter


def made(n_features=8, *, seed=0, **knobs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResidualAdapter(n_features, **knobs)


def feats(n=5, n_features=8):
    return F.normalize(torch.randn(n, n_features, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.mark.parametrize("weight", [0.01, 0.3])
def test_forward__by_loops(weight):
    adapter, z = made(weight=weight), feats()
    down, up = adapter.down, adapter.up
    for row, got in zip(z.tolist(), adapter(z).tolist(), strict=True):
        hidden = [
            max(0.0, sum(w * x for w, x in zip(ws, row, strict=True)) + b)
            for ws, b in zip(down.weight.tolist(), down.bias.tolist(), strict=True)
        ]
        added = [
            max(0.0, sum(w * h for w, h in zip(ws, hidden, strict=True)) + b)
            for ws, b in zip(up.weight.tolist(), up.bias.tolist(), strict=True)
        ]
        raw = [x + weight * a for x, a in zip(row, added, strict=True)]
        norm = sum(v * v for v in raw) ** 0.5
        assert got == pytest.approx([v / norm for v in raw], rel=1e-5, abs=1e-6)
    assert not torch.allclose(adapter(z), z, atol=1e-4 if weight > 0.1 else 1e-6)


@pytest.mark.parametrize(("n_features", "n_hidden", "width"), [(512, None, 128), (8, None, 4), (64, 3, 3)])
def test_init__width(n_features, n_hidden, width):
    adapter = made(n_features, n_hidden=n_hidden)
    assert adapter.down.weight.shape == (width, n_features)
    assert adapter.up.weight.shape == (n_features, width)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * width * n_features + width + n_features


def test_forward__close_to_nothing_at_first():
    z = feats(200, 64)
    assert (made(64)(z) * z).sum(1).min() > 0.9999


def test_forward__unit_float32_under_autocast_and_from_half():
    adapter = made()
    plain = adapter(feats())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = adapter(feats().bfloat16())
    assert inside.dtype == torch.float32
    torch.testing.assert_close(adapter(3 * feats()).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(inside, adapter(feats().bfloat16().float()))
    torch.testing.assert_close(inside, plain, atol=1e-2, rtol=0)


def test_forward__every_parameter_learns():
    adapter = made(weight=0.5)
    (adapter(feats()) @ torch.arange(8.0)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_state__comes_back():
    adapter, other = made(weight=0.5), made(seed=1, weight=0.5)
    assert not torch.equal(adapter(feats()), other(feats()))
    other.load_state_dict(adapter.state_dict())
    assert torch.equal(adapter(feats()), other(feats()))
