"""Learning from candidate labels over epochs: the curves that there are, how to read them, which network was saved."""

import pytest

from labelwright.reporting.candidate_training import curve_notes, deployed_words, division_figures
from labelwright.run_folder import Run
from plotted import valid


def run_on(*, epochs, begin=None):
    return Run("run", summary={"candidates": {"n_images": 40}}, data={}, epochs=list(epochs), begun=begin or {})


def test_division_figures__coreg():
    epochs = [
        {"epoch": 0, "loss": 1.0, "reliable_frac": 0.6, "in_set_frac": 0.9, "network_agreement": 0.8}
        | {"prototype_cosine": 0.0, "loss_p_main": 0.5, "loss_p_peer": 0.25},
        {"epoch": 1, "loss": 1.5, "reliable_frac": 0.7, "in_set_frac": 0.8, "network_agreement": 0.9}
        | {"prototype_cosine": 0.25, "loss_p_main": 0.25, "loss_p_peer": 0.25},
        {"epoch": 2, "reliable_frac": 0.8, "prototype_cosine": 0.5, "loss_p_main": None, "loss_p_peer": 0.5},
        {"epoch": 3, "loss_prototypes_main": 0.5, "loss_prototypes_peer": 0.25},
        {"epoch": 4, "loss_prototypes_main": 0.25, "loss_prototypes_peer": 0.25},
    ]
    begin = {"reliable_frac": 0.5, "in_set_frac": 0.75}
    figures = valid(division_figures(run_on(epochs=epochs, begin=begin)))
    assert list(figures) == ["Guesses and answers", "Likeness of the class centres", "Parts of the loss"]
    curves = {trace["name"]: (trace["x"], trace["y"]) for figure in figures.values() for trace in figure.data}
    assert curves == {
        "guesses trusted": ([0, 1, 2, 3], [0.5, 0.6, 0.7, 0.8]),
        "answers that are among the guesses": ([0, 1, 2], [0.75, 0.9, 0.8]),
        "images on which the two networks agree": ([1, 2], [0.8, 0.9]),
        "Likeness of the class centres": ([2, 3], [0.25, 0.5]),  # 0 was before there were any
        "trusted guesses": ([1, 2, 3], [0.375, 0.25, 0.5]),
        "class centres": ([4, 5], [0.375, 0.25]),
    }


@pytest.mark.parametrize(
    ("keys", "titles"),
    [
        (("inside_frac",), ["Answers that are among the guesses"]),  # kd, cc, proden, crdpll
        (("trusted_frac_main", "trusted_frac_peer"), ["Guesses trusted"]),  # dividemix
        (("classification", "contrastive", "prototype_cosine"), ["Likeness of the class centres", "Parts of the loss"]),
        (("loss",), []),
    ],
)
def test_division_figures__baselines_log_less(keys, titles):
    epochs = [{"epoch": e, **dict.fromkeys(keys, 0.5)} for e in range(2)]
    assert list(valid(division_figures(run_on(epochs=epochs)))) == titles
    assert division_figures(run_on(epochs=epochs[:1])) == []  # one epoch is no curve
    assert len(curve_notes(run_on(epochs=epochs))) == (0 if "loss" in keys else 1)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"deployed": "sum"}, "Two networks were trained; both were saved"),
        ({"deployed": "one"}, "The one network that was trained was saved."),
        ({"deployed": "annotator"}, "The annotator's own classifier was saved"),
    ],
)
def test_deployed_words__which_network(last, said):
    (words,) = deployed_words([{"epoch": 0}, last, {"epoch": 2}])  # the epochs after it stopped say nothing
    assert said in words


def test_deployed_words__why():
    last = {"deployed": "sum", "score_deployed": 0.75}
    assert deployed_words([last])[1].endswith("75.0% of its answers are among the image's guesses.")
    assert deployed_words([{**last, "score_guesses": 0.5}])[1].endswith(
        "The guesses: 0.500; the trained network: 0.750."
    )
    assert deployed_words([{"epoch": 0, "loss": 1.0}]) == []
