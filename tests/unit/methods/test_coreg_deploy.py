"""The end of Co-Reg: which network is kept, and when the annotator is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from labelwright.encoders.projection import ProjectedNet
from labelwright.methods.coreg_deploy import finish, put_in
from labelwright.metrics.agreement import Watch
from labelwright.types import Concepts, State, Task

COUNTS = (20, 20, 20)
TRUTH = torch.tensor(tiny.classes_of(COUNTS))
X = tiny.TinyFeats(TRUTH.tolist()).x
N = len(X)


def by_centres(order: list[int], *, head: Any = "mlp") -> ProjectedNet:
    """A network that answers class order[c] for images of class c."""
    net = ProjectedNet(tiny.BuildHead()(3, head=head), n_dims=4)  # type: ignore[arg-type]
    weight = torch.zeros(3, tiny.N_FEATURES)
    weight.index_add_(0, torch.tensor(order), 10 * tiny.centres_of(3))
    put_in(State({"main": net}), "main", weight, torch.zeros(3))
    return net


RIGHT, MERGED, ROTATED = [0, 1, 2], [0, 0, 2], [1, 2, 0]


def a_task(*, concepts: Concepts | None = None, n_novel: int = 0) -> Task:
    sets = tiny.sets_of(F.one_hot(TRUTH, 3).bool())
    return Task(torch.full((N,), -1), ("a", "b", "c")[: 3 - n_novel], sets, n_novel, concepts=concepts)


def a_state(main: ProjectedNet, peer: ProjectedNet | None = None, *, of_guesses: float | None = None) -> State:
    """With ``of_guesses``, the state of a run on features, where the guesses agreed that much with the clusters."""
    memory: dict[str, Any] = {}
    if of_guesses is not None:
        watch = Watch.start(X, 3, TRUTH)
        memory["watch"] = Watch(watch.rows, watch.clusters, of_guesses).to_dict()
    return State({"main": main} | ({"peer": peer} if peer is not None else {}), memory=memory)


def answers(state: State) -> list[int]:
    with torch.no_grad():
        predicted: Tensor = state.nets["main"](X).argmax(1)
    return [int(predicted[c == TRUTH].mode().values) for c in range(3)]


def ended(by: str, task: Task, state: State) -> tuple[dict[str, Any], list[str]]:
    warnings: list[str] = []
    return finish(by, task, state, tiny.passes_of(state, X), warnings), warnings


@pytest.mark.parametrize("of_guesses", [None, 0.0], ids=["inside the sets", "with clusters"])
@pytest.mark.parametrize("is_peer_better", [False, True])
def test_better__keeps_the_better_network(of_guesses: float | None, is_peer_better: bool) -> None:
    first, second = (MERGED, RIGHT) if is_peer_better else (RIGHT, MERGED)
    state = a_state(by_centres(first), by_centres(second), of_guesses=of_guesses)
    told, warnings = ended("better", a_task(), state)
    assert answers(state) == RIGHT
    assert told["deployed"] == "better"
    assert (told["score_peer"] > told["score_main"]) == is_peer_better
    assert told["score_deployed"] == max(told["score_peer"], told["score_main"])
    assert ("score_guesses" in told) == (of_guesses is not None)
    assert warnings == []


def test_score__counts_answers_inside_sets_that_say_something() -> None:
    mask = F.one_hot(TRUTH, 3).bool()
    mask[::4] = True  # full: not counted
    mask[1] = False  # empty: neither
    labels = torch.full((N,), -1)
    labels[2] = 2  # contradicts the network
    task = Task(labels, ("a", "b", "c"), tiny.sets_of(mask))
    told, _ = ended("distil", task, a_state(by_centres(MERGED)))
    counted = [i for i in range(N) if i % 4 != 0 and i != 1]
    inside = [i for i in counted if int(TRUTH[i]) != 1 and i != 2]
    assert told["score_deployed"] == pytest.approx(len(inside) / len(counted))


def test_average__is_the_mean_of_the_weights() -> None:
    main, peer = by_centres(RIGHT), by_centres(ROTATED)
    expected = [(a + b) / 2 for a, b in zip(main.parameters(), peer.parameters(), strict=True)]
    told, _ = ended("average", a_task(), a_state(main, peer))
    assert all(torch.allclose(p, e) for p, e in zip(main.parameters(), expected, strict=True))
    assert {"score_main", "score_peer", "score_deployed"} <= told.keys()


def test_distil__leaves_the_first_network_as_it_is() -> None:
    main, peer = by_centres(MERGED), by_centres(RIGHT)
    before = {key: value.clone() for key, value in main.state_dict().items()}
    told, _ = ended("distil", a_task(), a_state(main, peer))
    assert all(torch.equal(before[key], value) for key, value in main.state_dict().items())
    assert "score_peer" not in told


def test_better__alone() -> None:
    state = a_state(by_centres(ROTATED))
    told, _ = ended("better", a_task(), state)
    assert answers(state) == ROTATED
    assert told["score_deployed"] == 0.0


CONCEPTS = Concepts(tiny.centres_of(3), tiny.LOGIT_SCALE)


def test_finish__goes_back_to_the_annotator_where_the_networks_agree_less() -> None:
    main = by_centres(MERGED)
    torch.nn.init.normal_(main.classifier.head.from_hidden.weight)  # type: ignore[union-attr,arg-type]
    state = a_state(main, by_centres(MERGED), of_guesses=0.999)
    told, (said,) = ended("distil", a_task(concepts=CONCEPTS), state)
    assert told["deployed"] == "annotator"
    assert "the annotator's own classifier is kept instead" in said
    assert f"({told['score_deployed']:.3f}) than the guesses they learned from (0.999)" in said
    with torch.no_grad():
        assert torch.allclose(main(X), tiny.LOGIT_SCALE * X @ tiny.centres_of(3).T, atol=1e-5)
        assert torch.equal(main(X), main.exported()(X))


@pytest.mark.parametrize("case", ["no words", "another head", "novel classes"])
def test_finish__says_so_where_it_cannot_go_back(case: str) -> None:
    main = by_centres(MERGED, head="linear" if case == "another head" else "mlp")
    before = main(X)
    concepts = {"no words": None, "novel classes": Concepts(tiny.centres_of(3)[:2], tiny.LOGIT_SCALE)}
    task = a_task(concepts=concepts.get(case, CONCEPTS), n_novel=int(case == "novel classes"))
    told, (said,) = ended("distil", task, a_state(main, of_guesses=0.999))
    assert told["deployed"] == "distil"
    assert "compare before you use them" in said
    assert torch.equal(main(X), before)


def test_finish__says_which_first_guesses_the_student_contradicts() -> None:
    told, (said,) = ended("distil", a_task(), a_state(by_centres(MERGED)))
    assert told["overturned_frac"] == pytest.approx(1 / 3)
    assert "33% of the images, most where it was b (20 guesses, 0 answers), most where it becomes a (" in said
    assert ended("distil", a_task(), a_state(by_centres(RIGHT)))[1] == []


def test_finish__counts_no_verified_image_and_none_without_guesses_as_contradicted() -> None:
    mask = F.one_hot(TRUTH, 3).bool()
    labels = torch.full((N,), -1)
    labels[TRUTH == 1] = 1  # the network is wrong on all of these
    told, warnings = ended("distil", Task(labels, ("a", "b", "c"), tiny.sets_of(mask)), a_state(by_centres(MERGED)))
    assert (told["overturned_frac"], warnings) == (0.0, [])
    mask[TRUTH == 1] = True
    told, warnings = ended(
        "distil", Task(torch.full((N,), -1), ("a", "b", "c"), tiny.sets_of(mask)), a_state(by_centres(MERGED))
    )
    assert (told["overturned_frac"], warnings) == (0.0, [])


@pytest.mark.parametrize("of_guesses", [0.5, 1.0])
def test_finish__keeps_networks_that_agree_as_much(of_guesses: float) -> None:
    state = a_state(by_centres(RIGHT), of_guesses=of_guesses)
    told, warnings = ended("distil", a_task(concepts=CONCEPTS), state)
    assert told["score_deployed"] == pytest.approx(1.0)
    assert (told["deployed"], warnings) == ("distil", [])


def test_put_in__either_head() -> None:
    weight, bias = torch.randn(3, tiny.N_FEATURES), torch.randn(3)
    for head in ("mlp", "linear"):
        net = by_centres(RIGHT, head=head)
        put_in(State({"peer": net}), "peer", weight, bias)
        assert torch.allclose(net(X), F.linear(X, weight, bias), atol=1e-5)
        assert all(p.requires_grad for p in net.parameters())
