import math

import pytest
import torch
from torch import Tensor, nn

from labelwright.encoders.backbones import build
from labelwright.train.optim import (
    build_optimizer,
    hurry,
    lr_at,
    new_norms,
    optimizer_step,
    perturbed,
    running_stats_frozen,
    sam_radius_at,
    set_lr,
)
from labelwright.train.settings import TrainSettings


def keep(params: list[Tensor]) -> None:
    """Gradients of one process are as they are."""


@pytest.mark.parametrize(
    ("schedule", "epoch_frac", "lr"),
    [
        ("constant", 0.0, 0.4 * 5e-4),  # warm-up starts at half a thousandth of the peak
        ("constant", 0.5, 0.1),
        ("constant", 1.0, 0.2),
        ("constant", 1.999, 0.3998),
        ("constant", 2.0, 0.4),
        ("constant", 20.0, 0.4),
        ("step", 1.0, 0.2),
        ("step", 9.99, 0.4),
        ("step", 10.0, 0.04),
        ("step", 15.0, 0.004),
        ("cosine", 1.0, 0.2),
        ("cosine", 2.0, 0.4),
        ("cosine", 11.0, 0.4 * 0.5),  # half of the 18 epochs after warm-up
        ("cosine", 8.0, 0.4 * 0.75),  # a third: (1 + cos 60 deg) / 2
        ("cosine", 20.0, 0.0),
    ],
)
def test_lr_at__table(schedule: str, epoch_frac: float, lr: float) -> None:
    cfg = TrainSettings(epochs=20, lr=0.4, schedule=schedule, warmup_epochs=2.0, step_at_frac=(0.5, 0.75))  # type: ignore[arg-type]
    assert lr_at(cfg, epoch_frac) == pytest.approx(lr, rel=1e-12, abs=1e-16)


def test_lr_at__warmup_is_at_most_a_tenth_of_the_epochs() -> None:
    cfg = TrainSettings(epochs=10, lr=1.0, schedule="constant", warmup_epochs=5.0)
    assert [lr_at(cfg, e) for e in (0.5, 1.0)] == [0.5, 1.0]
    assert lr_at(TrainSettings(epochs=10, lr=1.0, schedule="constant", warmup_epochs=0.0), 0.0) == 1.0


def test_sam_radius_at__two_phases() -> None:
    cfg = TrainSettings(epochs=10, sam_radius=0.1, sam_radius_late=0.5, sam_late_from_frac=0.8)
    assert [sam_radius_at(cfg, e) for e in (0.0, 7.99, 8.0)] == [0.1, 0.1, 0.5]
    assert sam_radius_at(TrainSettings(epochs=10, sam_radius=0.1), 9.0) == 0.1
    assert sam_radius_at(TrainSettings(epochs=10, sam_radius=0.1, sam_radius_late=0.0), 9.0) == 0.0


def test_build_optimizer__layer_rates_follow_the_schedule() -> None:
    net = build("resnet32", 3, seed=0)
    optimizer = build_optimizer([net], TrainSettings(layer_decay=0.5, lr=0.1, weight_decay=3e-4))
    set_lr(optimizer, 0.2)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(net.named_parameters())
    assert len(rate_of) == len(named)
    assert rate_of[id(named["head.weight"])] == 0.2
    stem = next(p for name, p in named.items() if name.startswith("backbone.stem"))
    assert rate_of[id(stem)] == pytest.approx(0.2 * 0.5**16)  # 15 blocks between stem and head
    assert {group["weight_decay"] for group in optimizer.param_groups} == {3e-4}


def test_build_optimizer__leaves_frozen_parameters_out_and_takes_all_nets() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    first.bias.requires_grad_(False)
    for kind, cls in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        optimizer = build_optimizer([first, second], TrainSettings(optimizer=kind))  # type: ignore[arg-type]
        assert type(optimizer) is cls
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(first.weight), id(second.weight), id(second.bias)}


@pytest.mark.parametrize("radius", [0.0, 0.3])
def test_optimizer_step__descends_a_quadratic_as_worked_out_in_float64(radius: float) -> None:
    # f(w) = w.A.w / 2 with gradient A w, taken at w + radius A w / |A w|; SGD with momentum 0.9 and weight decay 0.01.
    a = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False).double()
    w = net.weight.detach().flatten().tolist()
    cfg = TrainSettings(lr=0.05, momentum=0.9, weight_decay=0.01)
    optimizer = build_optimizer([net], cfg)
    velocity = [0.0] * 3
    rows = a.tolist()
    for _ in range(4):
        loss = optimizer_step(
            optimizer,
            {"main": net},
            lambda: 0.5 * net.weight[0] @ a @ net.weight[0],
            radius=radius,
            max_grad_norm=0.0,
            reduce_grads=keep,
        )
        gradient = [sum(rows[i][j] * w[j] for j in range(3)) for i in range(3)]
        assert float(loss) == pytest.approx(0.5 * sum(w[i] * gradient[i] for i in range(3)), rel=1e-12)
        norm = math.sqrt(sum(g * g for g in gradient))
        moved = [w[i] + radius * gradient[i] / norm for i in range(3)]
        at_moved = [sum(rows[i][j] * moved[j] for j in range(3)) for i in range(3)]
        velocity = [0.9 * velocity[i] + at_moved[i] + 0.01 * w[i] for i in range(3)]
        w = [w[i] - 0.05 * velocity[i] for i in range(3)]
        assert net.weight.flatten().tolist() == pytest.approx(w, rel=1e-9)


def test_optimizer_step__clips_the_norm_over_all_parameters() -> None:
    net = nn.Linear(2, 1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer([net], TrainSettings(lr=1.0, momentum=0.0, weight_decay=0.0))
    optimizer_step(
        optimizer,
        {"main": net},
        lambda: 3.0 * net.weight.sum() + 4.0 * net.bias.sum(),  # gradient (3, 3; 4), norm sqrt(34)
        radius=0.0,
        max_grad_norm=0.5,
        reduce_grads=keep,
    )
    scale = 0.5 / math.sqrt(34)
    assert torch.allclose(before["weight"] - net.weight, torch.full((1, 2), 3 * scale), atol=1e-6)
    assert torch.allclose(before["bias"] - net.bias, torch.full((1,), 4 * scale), atol=1e-6)


def test_optimizer_step__reduces_the_gradients_of_both_forwards() -> None:
    net, calls = nn.Linear(2, 1), []
    optimizer = build_optimizer([net], TrainSettings())
    optimizer_step(
        optimizer,
        {"main": net},
        lambda: net(torch.ones(1, 2)).square().sum(),
        radius=0.1,
        max_grad_norm=0.0,
        reduce_grads=lambda params: calls.append(len(params)),
    )
    assert calls == [2, 2]


def test_perturbed__moves_by_the_radius_and_puts_back_every_bit_even_after_an_error() -> None:
    g = torch.Generator().manual_seed(0)
    params = [torch.randn(n, generator=g, requires_grad=True) for n in (5, 3)] + [torch.zeros(2, requires_grad=True)]
    for p in params[:2]:
        p.grad = torch.randn(p.shape, generator=g)
    before = [p.detach().clone() for p in params]
    moves: list[Tensor] = []

    def fail_inside() -> None:
        with perturbed(params, radius=0.7):
            moves.extend(p.detach() - b for p, b in zip(params, before, strict=True))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert math.sqrt(sum(float(m.square().sum()) for m in moves)) == pytest.approx(0.7, rel=1e-5)
    assert torch.equal(moves[2], torch.zeros(2))  # without a gradient: not moved
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))


def test_running_stats_frozen__and_thawed() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, momentum=None)).train()
    net(torch.randn(8, 2))
    before = {name: b.clone() for name, b in net.named_buffers()}
    x = 5 + torch.randn(8, 2)
    out: list[Tensor] = []

    def fail_inside() -> None:
        with running_stats_frozen([net]):
            out.append(net(x))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert torch.allclose(out[0].mean(0), torch.zeros(3), atol=1e-5)  # still normalised by the batch
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    assert [m.momentum for m in net if isinstance(m, nn.BatchNorm1d)] == [0.1, None]
    net(x)
    assert all(not torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_optimizer_step__sharpness_aware_counts_each_batch_once_in_the_running_stats() -> None:
    nets = [nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(8, 2)
    for net, radius in zip(nets, (0.0, 0.5), strict=True):
        optimizer_step(
            build_optimizer([net], TrainSettings()),
            {"main": net},
            lambda net=net: net(x).exp().sum(),
            radius=radius,
            max_grad_norm=0.0,
            reduce_grads=keep,
        )
    for plain, sharp in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
        assert torch.equal(plain, sharp)
    assert not torch.equal(nets[0][0].weight, nets[1][0].weight)


def test_hurry__running_statistics_of_a_new_layer_are_those_of_its_batches_after_a_few_steps() -> None:
    norm, kept = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    assert kept.running_mean is not None
    kept.running_mean.fill_(0.5)  # as of a pretrained network, which may come without a count of batches
    fresh = new_norms([torch.nn.Sequential(norm, kept)])
    assert fresh == [(norm, 0.1)]
    hurry(fresh, 4)
    for _ in range(4):
        norm(torch.tensor([[9.0], [11.0]]))
    assert norm.running_mean is not None
    assert abs(float(norm.running_mean) - 10) < 0.11  # 1% of the 0 that it began with
    assert kept.momentum == 0.1
