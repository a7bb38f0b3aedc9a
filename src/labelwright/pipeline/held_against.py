"""A network that began with random weights, held against colours and edges.

The images that the run held out choose: neither was fitted to their labels. Test images that the user gave do not, they
only show. Of few images no network is trained: see pipeline/no_network.py.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from labelwright.encoders import descriptor
from labelwright.encoders.resnets import OWN
from labelwright.metrics.choice import Choice, choose
from labelwright.metrics.scores import few_scores, scores_of
from labelwright.pipeline.evaluate import answers_of
from labelwright.pipeline.job import Job, prepare_job
from labelwright.pipeline.resolve import Plan, resolve
from labelwright.train import progress
from labelwright.train.loop import Trained, train
from labelwright.train.predict import Answers

NETWORK = "network"


class Learned(NamedTuple):
    """A plan, carried out."""

    plan: Plan
    job: Job
    trained: Trained


@dataclass(frozen=True)
class Verdict:
    """What to go on with."""

    learned: Learned  # the better one
    choice: Choice  # why: between `NETWORK` and `descriptor.NAME`
    other: dict[str, Any]  # the row of the one that was left, for ``reference`` of summary.json

    def over(self, choice: Choice) -> Choice:
        """The choice among what was held against the better one, with what this one was based on."""
        if not self.choice.scores:
            return choice
        if self.choice.name == descriptor.NAME:
            return dataclasses.replace(choice, why=f"{self.choice.why}; {choice.why}")
        scores = {choice.name: self.choice.scores[NETWORK], descriptor.NAME: self.choice.scores[descriptor.NAME]}
        return Choice(choice.name, self.choice.why, scores)


def with_descriptor(plan: Plan) -> Plan | None:
    """The same run on colours and edges; None where the user chose the network, or nothing shows which is better."""
    settings, prepared = plan.settings, plan.prepared
    asked_for = settings.model != "auto" or settings.method != "auto" or settings.views == "pixels" or settings.freeze
    is_random = plan.views == "pixels" and plan.model in OWN
    is_shown = prepared.test is not None and prepared.situation.n_novel is None
    if asked_for or not is_random or not is_shown or settings.answer == "trained":
        return None
    plain = dataclasses.replace(settings, model=descriptor.NAME, size=None, minutes=None, epochs=None, set=())
    found = resolve(plain, plan.run)
    return None if found.cfg.takes_steps else dataclasses.replace(found, settings=settings)


def held_against(network: Learned, plan: Plan) -> Verdict:
    """Fit the plan that `with_descriptor` made, and choose.

    Every process takes part.
    """
    began = time.monotonic()
    if plan.accelerator.is_main_process:
        progress.say("held against colours and edges")
    job = prepare_job(plan, {}, None)
    options = dataclasses.replace(plan.options, trains=False, show_progress=False)
    views = job.prepared.train.views(job.prepared.view)
    trained = train(plan.method.recipe, job.cfg, job.task, views, job.build, options=options)
    plain = Learned(plan, job, trained)
    seconds = time.monotonic() - began
    titles = {NETWORK: f"{network.plan.model} from random weights", descriptor.NAME: "a head on colours and edges"}
    found = {NETWORK: _held_out(network), descriptor.NAME: _held_out(plain)}
    truth = found[NETWORK].given
    asked = found if job.prepared.test_is == "held out" else {}
    choice = choose(NETWORK, titles, {name: each.predicted for name, each in asked.items()}, truth)
    is_plain = choice.name == descriptor.NAME
    left = NETWORK if is_plain else descriptor.NAME
    counts = job.prepared.train.table.counts()
    row = {
        "title": titles[left][:1].upper() + titles[left][1:],
        "left_out": choice.scores.get(left),
        "test": few_scores(scores_of(found[left], truth.numpy(), counts)),
        "unlabelled": None,
        "seconds": round(network.trained.seconds if is_plain else seconds, 2),
    }
    return Verdict(plain if is_plain else network, choice, {left: row})


def _held_out(learned: Learned) -> Answers:
    """Answers to the images that were held out."""
    plan, job, source = learned.plan, learned.job, learned.job.prepared.test
    assert source is not None
    given = torch.from_numpy(source.table.labels).long()
    views = source.views(job.prepared.view)
    return answers_of(plan, plan.method.recipe, job.cfg, learned.trained.state, views, given=given)
