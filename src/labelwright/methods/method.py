"""What a method is to the rest of the package: a recipe, and everything that is special about it."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from labelwright.annotators.annotator import Guesses
from labelwright.data.table import LabelTable
from labelwright.reporting.sections import Sections
from labelwright.run_folder import Run
from labelwright.train.plans import steps_for
from labelwright.train.predict import Answers
from labelwright.train.settings import TrainSettings
from labelwright.types import BuildNet, Recipe, Task, ViewSource

Views = Literal["pixels", "embeddings"]
Images = Literal["train", "test"]


@dataclass(frozen=True)
class Requires:
    """What a method cannot do without."""

    labels: bool = False  # some labelled images
    or_text: bool = False  # of ``labels``, that text features of the class names will do where no image has one
    text: bool = False  # text features of the class names
    candidates: bool = False  # candidate labels, which an annotator can give where the data has none
    novel: bool = False  # it finds classes that nobody named, and no other method may run where there are such


@dataclass(frozen=True)
class Budget:
    """What there is to learn from, and where."""

    n_images: int  # training images
    n_labelled: int  # those with a label
    is_stored: bool  # the method sees stored features, not pixels
    is_cpu: bool  # no accelerator
    # images that the time there is passes through the network, forward and back; None where time sets no limit: of
    # stored features, or where the user gave the epochs
    n_passes: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a finished run is summed up from."""

    task: Task  # as training had it
    train: LabelTable  # this and the next: the images, with truths that serve for scores alone; test may be None
    test: LabelTable | None
    own: Answers  # answers of the trained classifier on the training images
    # answers of the text model alone, on "train" or "test"; None where no text model reads the names
    ask: Callable[[Images], Answers] | None
    guesses: Guesses | None  # candidates of an annotator; None if nobody guessed
    feats: Callable[[], Tensor]  # makes the features [N, D] of the training images
    evidence: Mapping[str, Any] | None  # how the number of novel classes was estimated; None if it was not
    # names offered to discovered classes, with their text features; None if there are none
    words: Mapping[str, Tensor] | None


def views_of_pixels(cfg: Any, *, is_two_tower: bool) -> Views:
    """Pixels, whatever the model."""
    return "pixels"


def views_by_model(cfg: Any, *, is_two_tower: bool) -> Views:
    """Embeddings of a two-tower model, else pixels."""
    return "embeddings" if is_two_tower else "pixels"


def views_of_features(cfg: Any, *, is_two_tower: bool) -> Views:
    """Embeddings: the network stays as it is."""
    return "embeddings"


def passes_of_labelled(cfg: Any, budget: Budget) -> float:
    """Images that an epoch passes through the network: every labelled one once."""
    return budget.n_labelled


def views_per_image(n_views: float) -> Callable[[Any, Budget], float]:
    """`Method.passes` of a method that passes every image in so many views, over all its networks."""
    return lambda cfg, budget: n_views * budget.n_images


def in_time(cfg: Any, budget: Budget, per_epoch: float, *, least: int) -> Any:
    """As many epochs of ``per_epoch`` passes as there is time for, at least ``least``, at most those of the Config.

    Example:
      >>> from labelwright.train.settings import TrainSettings
      >>> budget = Budget(100, 100, is_stored=False, is_cpu=True, n_passes=1250.0)
      >>> in_time(TrainSettings(), budget, 100, least=5).epochs, in_time(TrainSettings(), budget, 600, least=5).epochs
      (12, 5)
    """
    if budget.n_passes is None:
        return cfg
    n_epochs = int(budget.n_passes / max(1.0, per_epoch * (2 if cfg.sam_radius > 0 else 1)))
    return replace(cfg, epochs=min(cfg.epochs, max(least, n_epochs)))


def as_configured(cfg: Any, budget: Budget, given: Container[str]) -> Any:
    """The schedule of the Config."""
    return cfg


def schedule_by(
    passes: Callable[[Any, Budget], float], on_features: Callable[[Any, Budget], int], *, least: int
) -> Callable[[Any, Budget, Container[str]], Any]:
    """`Method.schedule` where the user gives no epochs: of pixels as many as there is time for, at least ``least``;
    on stored features as ``on_features`` says; at most those of the Config.
    """

    def schedule(cfg: Any, budget: Budget, given: Container[str]) -> Any:
        if "epochs" in given:
            return cfg
        if not budget.is_stored:
            return in_time(cfg, budget, passes(cfg, budget), least=least)
        return replace(cfg, epochs=min(cfg.epochs, on_features(cfg, budget)))

    return schedule


def epochs_of(n_steps: int, *, least: int) -> Callable[[Any, Budget], int]:
    """Epochs, at least ``least``, that make ``n_steps`` steps over all images."""
    return lambda cfg, budget: max(least, round(n_steps / steps_for(budget.n_images, cfg.batch_size)))


def nothing_more(outcome: Outcome) -> dict[str, Any]:
    """A summary that says nothing beyond what every run says."""
    return {}


def no_sections(run: Run) -> Sections:
    """A report with nothing beyond what every report has."""
    return Sections()


def as_it_is(cfg: Any, task: Task, views: ViewSource, build: BuildNet, **how: Any) -> Any:
    """No setting is chosen by trial."""
    return cfg


@dataclass(frozen=True)
class Method:
    """A method by everything that the pipeline asks of one; the pipeline compares no names."""

    title: str  # what to call it in tables and reports
    recipe: Recipe  # a module, or an object with the seven names of types.Recipe
    requires: Requires  # what it cannot do without
    # name -> settings that differ from the recipe's defaults; "practical" is what runs by default
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    # what it sees if the user does not say: (cfg, is_two_tower) -> "pixels" or "embeddings"
    default_views: Callable[..., Views] = views_of_pixels
    # (cfg, budget, names of the settings that the user gave) -> cfg, with epochs that suit the run
    schedule: Callable[[Any, Budget, Container[str]], TrainSettings] = as_configured
    # (cfg, budget) -> images that an epoch passes through networks forward and back, forward alone as a third; what a
    # time is made of
    passes: Callable[[Any, Budget], float] = passes_of_labelled
    pilot: Callable[..., Any] = as_it_is  # settings chosen by short runs without labels; see methods.cap_margin
    # what summary.json says of it beyond what every run says
    summarise: Callable[[Outcome], dict[str, Any]] = nothing_more
    sections: Callable[[Run], Sections] = no_sections  # what the report shows of it beyond what every report shows
    templates: str = "mixed"  # prompts for class names if the user names none
    # the recipe in place of `recipe` where it learns from stored features; None = the same
    frozen: Recipe | None = None
    # images -> the method that takes its place where nobody named one and there are stored features to learn from
    on_embeddings: Callable[[LabelTable], str] | None = None
    has_start: bool = False  # what the recipe begins with is a classifier already
    is_baseline: bool = False  # it is there to be compared with, and is a run's answer whatever is better
    # preset -> settings of `fit` that go with it where the user gives none, as the network of the paper
    run_presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def on_features(self) -> Method:
        """The method as it learns from stored features; presets that train the network are left out."""
        if self.frozen is None:
            return self
        presets = {name: changes for name, changes in self.presets.items() if name not in self.run_presets}
        return replace(self, recipe=self.frozen, schedule=as_configured, presets=presets, frozen=None)
