import math
from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from labelwright.errors import ConfigError, DataError
from labelwright.losses.contrastive import Rule, init_queue, noisy_contrastive, nt_xent, push_queue

RULES = get_args(Rule)
B, D = 6, 5
LABELS = torch.tensor([0, 0, 1, 1, 0, -1])
RELIABLE = torch.tensor([True, True, True, False, False, True])
QUEUE_LABELS = torch.tensor([0, 1, 0, 2, -1])
QUEUE_RELIABLE = torch.tensor([True, True, False, True, True])


def units(rows, seed, dtype=torch.float64):
    draw = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(draw, dim=1).to(dtype)


def a_queue(seed=2):
    queue = init_queue(8, D)  # 5 of 8 slots filled, one of them with a key of no label
    return push_queue(queue, units(5, seed), QUEUE_LABELS, QUEUE_RELIABLE)


def noisy(query, key, *, rule, labels=LABELS, is_reliable=RELIABLE, temperature=0.3, **rest):
    rest.setdefault("queue", a_queue())
    return noisy_contrastive(
        query, key, labels=labels, is_reliable=is_reliable, rule=rule, temperature=temperature, **rest
    )


LOSSES = {rule: partial(noisy, rule=rule) for rule in RULES} | {"nt_xent": partial(nt_xent, temperature=0.3)}
EACH = pytest.mark.parametrize("name", LOSSES)
NOISY = pytest.mark.parametrize("rule", RULES)


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def noisy_oracle(rule, query, key, labels, reliable, stored, temperature=0.3):
    """Row by row and sample by sample, from the rule's words; ``stored`` holds (key, label, reliable) of the queue."""
    batch = list(zip(labels.tolist(), reliable.tolist(), strict=True))
    samples = [("query", i, z, *batch[i]) for i, z in enumerate(query.tolist())]
    samples += [("key", i, z, *batch[i]) for i, z in enumerate(key.tolist())]
    samples += [("queue", None, *row) for row in stored]
    values = []
    for i, anchor in enumerate(query.tolist()):
        label, trusted = batch[i]
        total, positives = 0.0, []
        for source, j, z, other_label, other_trusted in samples:
            if source == "query" and j == i:
                continue
            own_key = source == "key" and j == i
            same = label >= 0 and label == other_label
            if rule == "unsupervised" and not own_key and source != "queue":
                continue
            if rule == "cautious" and same and not own_key and not (trusted and other_trusted):
                continue
            sim = dot(anchor, z) / temperature
            total += math.exp(sim)
            attracts = {"unsupervised": False, "supervised": same}.get(rule, same and trusted and other_trusted)
            if own_key or attracts:
                positives.append(sim)
        values.append(sum(math.log(total) - sim for sim in positives) / len(positives))
    return values


def nt_xent_oracle(a, b, temperature=0.3):
    views = a.tolist() + b.tolist()
    n = len(a)
    each = []
    for i, anchor in enumerate(views):
        total = sum(math.exp(dot(anchor, z) / temperature) for j, z in enumerate(views) if j != i)
        each.append(math.log(total) - dot(anchor, views[(i + n) % (2 * n)]) / temperature)
    return [(each[i] + each[i + n]) / 2 for i in range(n)]


def oracle(name, query, key, labels=LABELS, reliable=RELIABLE):
    if name == "nt_xent":
        return nt_xent_oracle(query, key)
    stored = zip(a_queue()["keys"].tolist(), QUEUE_LABELS.tolist(), QUEUE_RELIABLE.tolist(), strict=False)
    return noisy_oracle(name, query, key, labels, reliable, [row for row in stored if row[1] >= 0])


@EACH
def test_loss__oracle(name):
    query, key = units(B, 0), units(B, 1)
    expected = oracle(name, query, key)
    assert LOSSES[name](query, key, reduce="none").tolist() == pytest.approx(expected, rel=1e-10)
    assert LOSSES[name](query, key).item() == pytest.approx(sum(expected) / B, rel=1e-10)
    assert LOSSES[name](query, key, reduce="sum").item() == pytest.approx(sum(expected), rel=1e-10)


def test_noisy_contrastive__rules_differ_on_this_case():
    query, key = units(B, 0), units(B, 1)
    values = [noisy(query, key, rule=rule).item() for rule in RULES]
    assert min(abs(x - y) for i, x in enumerate(values) for y in values[:i]) > 0.01


@NOISY
def test_noisy_contrastive__worked_number(rule):
    # cosines of row 0: own key 1, other query 0, other key 0, queue: 1 (same label, trusted) and -1 (another label)
    z, e = torch.eye(2), math.e
    queue = push_queue(
        init_queue(2, 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([4, 5]), torch.tensor([True, True])
    )
    total = {"cautious": e + e + 1 / e, "unsupervised": e + e + 1 / e}.get(rule, e + 1 + 1 + e + 1 / e)
    attracted = {"supervised": [1, 0, 0, 1], "unsupervised": [1]}.get(rule, [1, 1])
    loss = noisy_contrastive(
        z,
        z,
        labels=torch.tensor([4, 4]),
        is_reliable=torch.tensor([True, False]),
        queue=queue,
        rule=rule,
        temperature=1.0,
        reduce="none",
    )
    assert loss[0].item() == pytest.approx(math.log(total) - sum(attracted) / len(attracted), rel=1e-6)


@NOISY
def test_noisy_contrastive__all_labels_unknown(rule):
    """Without labels every rule but the queue's own attracts the own key and repels all else."""
    query, key, unknown = units(B, 0), units(B, 1), torch.full((B,), -1)
    loss = noisy(query, key, rule=rule, labels=unknown).item()
    same = oracle("unsupervised" if rule == "unsupervised" else "supervised", query, key, labels=unknown)
    assert loss == pytest.approx(sum(same) / B, rel=1e-10)


def test_noisy_contrastive__one_class_all_reliable():
    """Then the three rules on labels are one: supervised contrastive learning."""
    query, key, labels = units(B, 0), units(B, 1), torch.zeros(B, dtype=torch.int64)
    trusted = torch.ones(B, dtype=torch.bool)
    queue = push_queue(init_queue(3, D), units(3, 2), torch.zeros(3, dtype=torch.int64), torch.ones(3).bool())
    values = [noisy(query, key, rule=r, labels=labels, is_reliable=trusted, queue=queue).item() for r in RULES[:3]]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-12)
    assert noisy(query, key, rule="unsupervised", queue=queue).item() != pytest.approx(values[0], rel=1e-3)


@pytest.mark.parametrize("rule", RULES[:3])
def test_noisy_contrastive__empty_queue_is_no_queue(rule):
    query, key = units(B, 0), units(B, 1)
    without = noisy(query, key, rule=rule, queue=None).item()
    assert noisy(query, key, rule=rule, queue=init_queue(4, D)).item() == pytest.approx(without, rel=1e-12)
    assert noisy(query, key, rule=rule).item() != pytest.approx(without, rel=1e-3)


def test_noisy_contrastive__unsupervised_with_an_empty_queue_is_zero():
    assert noisy(units(B, 0), units(B, 1), rule="unsupervised", queue=init_queue(4, D)).abs().item() < 1e-12


@EACH
def test_loss__gradcheck(name):
    where = torch.tensor([True, True, False, True, True, True])
    weights = torch.tensor([1.0, 2.0, 3.0, 0.5, 0.0, 1.0], dtype=torch.float64)
    inputs = units(B, 0).requires_grad_(), units(B, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k: LOSSES[name](q, k, weights=weights, where=where), inputs)


@EACH
def test_loss__descending_brings_the_views_together(name):
    query, key = units(B, 0).requires_grad_(), units(B, 1)
    (grad,) = torch.autograd.grad(LOSSES[name](query, key), query)
    moved = F.normalize(query.detach() - 0.1 * grad, dim=1)
    assert LOSSES[name](moved, key).item() < LOSSES[name](query, key).item() - 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@EACH
def test_loss__extreme_inputs(name, dtype):
    """Cosines of -1 and 1 at a temperature of 1e-3, and features that are far from unit norm."""
    ends = torch.eye(D, dtype=dtype)[torch.zeros(B, dtype=torch.int64)]
    for query, key in ((ends, -ends), (ends, ends), (1e8 * units(B, 0, dtype), 1e8 * units(B, 1, dtype))):
        query = query.clone().requires_grad_()
        loss = LOSSES[name](query, key, temperature=1e-3, reduce="none")
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(query.grad).all()
    apart = LOSSES[name](ends, -ends, temperature=1e-3).item()
    # the nearest wrong sample has cosine 1 and the own key -1: at least 2 / T where such a sample is in play
    assert apart > 1000 if name != "unsupervised" else apart > 100


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@NOISY
def test_noisy_contrastive__row_left_out_is_not_there(rule, poison):
    kept = torch.tensor([0, 1, 3, 4, 5])
    where = torch.ones(B, dtype=torch.bool).index_fill(0, torch.tensor([2]), False)
    clean = units(B, 0)[kept].requires_grad_(), units(B, 1)[kept].requires_grad_()
    bad = [units(B, seed).index_fill(0, torch.tensor([2]), poison).requires_grad_() for seed in (0, 1)]
    weights = torch.ones(B, dtype=torch.float64).index_fill(0, torch.tensor([2]), math.nan)
    loss = noisy(*bad, rule=rule, where=where, weights=weights)
    expected = noisy(*clean, rule=rule, labels=LABELS[kept], is_reliable=RELIABLE[kept])
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for got, want in zip(bad, clean, strict=True):
        torch.testing.assert_close(got.grad[kept], want.grad, rtol=1e-10, atol=1e-14)
        assert got.grad[2].abs().max() == 0


def test_noisy_contrastive__row_left_out_may_hold_a_label_beyond_the_classes():
    where = torch.arange(B) != 2
    values = [
        noisy(units(B, 0), units(B, 1), rule="cautious", where=where, n_classes=3, labels=LABELS.masked_fill(~where, y))
        for y in (99, -1)
    ]
    assert values[0].item() == values[1].item()


@NOISY
def test_noisy_contrastive__empty_batch_with_a_queue_is_zero(rule):
    none = torch.zeros(0, D).double()
    assert noisy(none, none, rule=rule, labels=LABELS[:0], is_reliable=RELIABLE[:0]).item() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
@NOISY
def test_noisy_contrastive__labels_of_few_bits(rule, dtype):
    query, key, labels = units(B, 0), units(B, 1), LABELS.clamp(min=0)
    expected = noisy(query, key, rule=rule, labels=labels).item()
    assert noisy(query, key, rule=rule, labels=labels.to(dtype)).item() == expected


def test_nt_xent__row_left_out_still_repels():
    a, b = units(B, 0), units(B, 1)
    where = torch.arange(B) != 2
    expected = nt_xent_oracle(a, b)
    got = nt_xent(a, b, temperature=0.3, where=where, reduce="none")
    assert got.tolist() == pytest.approx([v * (i != 2) for i, v in enumerate(expected)], rel=1e-10)
    mean = (sum(expected) - expected[2]) / (B - 1)
    assert nt_xent(a, b, temperature=0.3, where=where).item() == pytest.approx(mean, rel=1e-10)


def test_nt_xent__views_may_trade_places():
    a, b = units(B, 0), units(B, 1)
    expected = nt_xent(b, a, temperature=0.3, reduce="none")
    torch.testing.assert_close(nt_xent(a, b, temperature=0.3, reduce="none"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@EACH
def test_loss__nothing_kept_is_zero(name, reduce):
    query = units(B, 0).requires_grad_()
    loss = LOSSES[name](query, units(B, 1), where=torch.zeros(B, dtype=torch.bool), reduce=reduce)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(query.grad, torch.zeros(B, D, dtype=torch.float64))


@EACH
def test_loss__weights_weigh_the_anchors(name):
    weights = [1.0, 2.0, 0.0, 0.5, 1.0, 3.0]
    query, key = units(B, 0), units(B, 1)
    expected = dot(weights, oracle(name, query, key)) / sum(weights)
    got = LOSSES[name](query, key, weights=torch.tensor(weights, dtype=torch.float64))
    assert got.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("is_autocast", [False, True])
@EACH
def test_loss__half_precision_is_computed_in_float32(name, is_autocast):
    half = units(B, 0, torch.bfloat16), units(B, 1, torch.bfloat16)
    given = [z.float() for z in half] if is_autocast else half
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        loss = LOSSES[name](*given, temperature=0.07)
    assert loss.dtype == torch.float32
    # float32 rounding is 1e-7 of sums below 15 / 0.07; products in bfloat16 would be off by 4e-3
    queue = {n: v.double() if n == "keys" else v for n, v in a_queue().items()}
    rest = {} if name == "nt_xent" else {"queue": queue}
    expected = LOSSES[name](*[z.double() for z in half], temperature=0.07, **rest).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_noisy_contrastive__gradients_reach_query_and_key_but_not_the_queue():
    query, key, queue = units(B, 0).requires_grad_(), units(B, 1).requires_grad_(), a_queue()
    noisy(query, key, rule="cautious", queue=queue).backward()
    assert query.grad.abs().sum(dim=1).min() > 0
    assert key.grad.abs().sum(dim=1).min() > 0
    assert not queue["keys"].requires_grad


@pytest.mark.parametrize(("batches", "size"), [((3, 3, 3), 7), ((2, 9, 1), 4), ((4, 4), 4), ((1,), 3)])
def test_push_queue__is_first_in_first_out(batches, size):
    queue, pushed = init_queue(size, 2), []
    for count in batches:
        start = len(pushed)
        new = torch.arange(start, start + count)
        pushed += new.tolist()
        keys = torch.stack([new, new + 0.5], dim=1).float()
        queue = push_queue(queue, keys, new, new % 2 == 0)
        slots = [-1] * size  # one after another, as a ring
        for number in pushed:
            slots[number % size] = number
        assert queue["labels"].tolist() == slots
        assert queue["is_reliable"].tolist() == [n >= 0 and n % 2 == 0 for n in slots]
        assert queue["keys"].tolist() == [[n, n + 0.5] if n >= 0 else [0, 0] for n in slots]
        assert queue["place"].item() == len(pushed) % size


def test_push_queue__old_queue_is_unchanged_and_no_graph_is_kept():
    old = a_queue()
    before = {name: value.clone() for name, value in old.items()}
    keys = units(4, 9).requires_grad_()
    new = push_queue(old, keys, torch.arange(4), torch.ones(4, dtype=torch.bool))
    assert not new["keys"].requires_grad
    assert new["keys"].dtype == torch.float32
    assert all(torch.equal(old[name], before[name]) for name in before)
    assert not torch.equal(new["keys"], old["keys"])


def test_push_queue__nothing_to_push():
    old = a_queue()
    new = push_queue(old, torch.zeros(0, D), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    assert all(torch.equal(new[name], old[name]) for name in old)


def test_queue__survives_a_checkpoint(tmp_path):
    queue = a_queue()
    torch.save(queue, tmp_path / "queue.pt")
    back = torch.load(tmp_path / "queue.pt", weights_only=True)
    assert back.keys() == queue.keys()
    assert all(torch.equal(back[name], queue[name]) for name in queue)


@pytest.mark.parametrize("key", ["weights", "where"])
@EACH
def test_loss__error_names_what_does_not_fit(name, key):
    with pytest.raises(DataError, match=rf"{key} has shape \[7\] for features \[6, 5\]") as error:
        LOSSES[name](units(B, 0), units(B, 1), **{key: torch.ones(7).bool()})
    assert error.value.fix == f"pass {key} with one entry per row"


@EACH
def test_loss__error_names_bad_settings(name):
    query, key = units(B, 0), units(B, 1)
    with pytest.raises(ConfigError, match=r"temperature=0 is not positive"):
        LOSSES[name](query, key, temperature=0)
    with pytest.raises(ConfigError, match=r"reduce='average' is unknown"):
        LOSSES[name](query, key, reduce="average")
    with pytest.raises(DataError, match=r"the two views have shapes \[6, 5\] and \[4, 5\]"):
        LOSSES[name](query, key[:4])
    with pytest.raises(DataError, match=r"features have shape \[5\], not \[B, D\]"):
        LOSSES[name](query[0], key[0])


def test_noisy_contrastive__errors_of_its_own():
    query, key = units(B, 0), units(B, 1)
    with pytest.raises(ConfigError, match="rule='bold' is unknown") as error:
        noisy(query, key, rule="bold")
    assert error.value.fix == "use one of cautious, high_confidence, supervised, unsupervised"
    with pytest.raises(ConfigError, match="rule='unsupervised' contrasts with the queue, and there is none"):
        noisy(query, key, rule="unsupervised", queue=None)
    with pytest.raises(DataError, match=r"query \[6, 5\] for a queue of 3 features"):
        noisy(query, key, rule="cautious", queue=init_queue(4, 3))
    with pytest.raises(DataError, match=r"labels has shape \[2\] for features \[6, 5\]"):
        noisy(query, key, rule="cautious", labels=LABELS[:2])


def test_queue__errors():
    with pytest.raises(ConfigError, match="size=0 leaves no room"):
        init_queue(0, 3)
    with pytest.raises(DataError, match=r"keys \[2, 5\] for a queue of 3 features"):
        push_queue(init_queue(4, 3), units(2, 0), torch.tensor([0, 1]), torch.tensor([True, True]))
    with pytest.raises(DataError, match=r"is_reliable has shape \[1\] for features \[2, 5\]"):
        push_queue(init_queue(4, D), units(2, 0), torch.tensor([0, 1]), torch.tensor([True]))
