"""One epoch of Co-Reg as shipped against a straightforward one, same networks, same images, same run.

    python benchmarks/coreg_epoch.py pixels CIFAR10_TRAIN.parquet [--images 2000] [--rounds 1] [--seed 0]
    python benchmarks/coreg_epoch.py features [--images 10000] [--classes 10] [--rounds 3] [--seed 0]

The straightforward one is `Reference` below, written as public implementations are: Python loops over samples where
prototypes move, where the masks of the queue are made and where the division is kept; dense tables of all images and
classes; one view per forward pass; from pixels every image decoded and augmented by PIL once per view. What it computes
is the same: before anything is timed, its losses, prototypes, queues and division are compared with Co-Reg's on fixed
batches, in float32 and without dropout or batch statistics, and the script fails where they differ by more than 1e-4.

Timed is an epoch after the warm-up, prototypes and contrastive loss on, with its division: ResNet-32 and batches of 128
from pixels, a residual head on random stored features of 128 numbers and batches of 256. The two take turns, medians
of CPU seconds are reported, which other work on the machine disturbs least; run it with OMP_NUM_THREADS=1. Both run in
the precision and the memory layout that Co-Reg picks; `--plain` leaves the reference those of plain PyTorch: float32,
channels first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augment import pil_view
from labelwright.data.cache import PixelCache
from labelwright.data.read import load
from labelwright.data.views import PixelViews, ViewSettings
from labelwright.encoders import backbones
from labelwright.labels.purify import divide
from labelwright.methods import coreg
from labelwright.train.loop import LoopOptions, train
from labelwright.train.processes import autocast_dtype
from labelwright.train.seeds import generator
from labelwright.types import Batch, Candidates, Clock, State, Task, ViewSource

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
CPU = torch.device("cpu")
TOLERANCE = 1e-4
PASS_BATCH = 512
Look = Callable[[Tensor, str, int], Tensor]  # rows, view, seed -> [B, ...] float32


class Reference:
    """Co-Reg as one writes it first, from the state that Co-Reg has begun with."""

    def __init__(self, cfg: coreg.Config, task: Task, state: State, look: Look, *, is_plain: bool) -> None:
        self.cfg, self.task = cfg, task
        self.layout = torch.contiguous_format if is_plain else torch.channels_last
        self.look = (
            look if state.memory["is_frozen"] else lambda *what: look(*what).contiguous(memory_format=self.layout)
        )
        self.dtype = autocast_dtype(CPU, "fp32" if is_plain else "auto")
        memory: Any = copy.deepcopy(state.memory)
        self.is_frozen, self.names = memory["is_frozen"], tuple(memory["divisions"])
        self.nets: Any = copy.deepcopy(dict(state.nets))
        for net in self.nets.values():
            net.to(memory_format=self.layout)
        trained = [p for name in self.names for p in self.nets[name].parameters()]
        self.optimizer = torch.optim.SGD(trained, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        everything = torch.arange(len(task.labels))
        self.guesses = task.guesses(everything)  # [N, C], dense
        self.prior, self.miss = memory["prior"], memory["miss"]
        self.is_prior_known = memory["is_prior_known"]
        self.prototypes = memory["prototypes"]
        self.queues = memory["queues"]
        self.histories: dict[str, list[Tensor]] = {}
        self.beliefs, self.clean, self.mean, self.ratio = {}, {}, {}, {}
        for name, word in memory["divisions"].items():
            self.histories[name] = list(word["history"]["losses"][:, : int(word["history"]["n_pushed"])].unbind(1))
            self.beliefs[name] = coreg.read_beliefs(word["beliefs"], everything, task.n_classes)
            self.clean[name], self.mean[name], self.ratio[name] = word["clean"], word["mean"], word["ratio"]

    def epoch(self, epoch: int, *, n_steps: int | None = None) -> None:
        """Every image once, then the division."""
        for name in self.names:
            self.nets[name].train()
            self.nets[f"{name}_key"].eval()
        kinds = ("clean", "clean") if self.is_frozen else ("weak", "weak", "strong", "strong")
        batches = list(torch.randperm(len(self.task.labels)).split(self.cfg.batch_size))[:n_steps]
        for step, rows in enumerate(batches):
            views = [self.look(rows, kind, 10 * step + i) for i, kind in enumerate(kinds)]
            clock = Clock(epoch, self.cfg.epochs, step, len(batches), 0)
            with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
                loss = sum(self.losses(rows, views, clock).values())
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            self.optimizer.step()
            self.follow()
        self.end_epoch(epoch)

    @torch.no_grad()
    def follow(self) -> None:
        """The momentum networks move."""
        for name in self.names:
            net, key = self.nets[name], self.nets[f"{name}_key"]
            decay = self.cfg.key_decay
            for new, old in zip([*net.parameters(), *net.buffers()], [*key.parameters(), *key.buffers()], strict=True):
                old.copy_(old * decay + new * (1 - decay) if old.is_floating_point() else new)

    def losses(self, rows: Tensor, views: list[Tensor], clock: Clock) -> dict[str, Tensor]:
        """The weighted losses of both networks."""
        n_weak = len(views) // 2
        seen: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for name in self.names:
                said = [self.nets[name](view).float().softmax(1) for view in views[:n_weak]]
                decay = self.cfg.mean_decay
                self.mean[name] = decay * self.mean[name] + (1 - decay) * torch.cat(said).mean(0)
                seen[name] = [normalised(probs * self.prior / self.mean[name].clamp(min=1e-6)) for probs in said]
        found: dict[str, Tensor] = {}
        for name, other in (self.names, self.names[::-1]):
            clean = self.clean[other][rows]
            is_reliable = clean > self.cfg.threshold
            own, both = (
                torch.stack(seen[name]).mean(0),
                torch.stack([p for each in seen.values() for p in each]).mean(0),
            )
            on_p = clean[:, None] * self.beliefs[other][rows] + (1 - clean[:, None]) * own
            targets = torch.where(is_reliable[:, None], on_p, both)
            targets = normalised(targets ** (1 / self.cfg.temperature))
            for term, value in self.terms(name, views[n_weak:], targets, is_reliable, clock).items():
                found[f"{term}_{name}"] = value
        return found

    def terms(
        self, name: str, views: list[Tensor], targets: Tensor, is_reliable: Tensor, clock: Clock
    ) -> dict[str, Tensor]:
        """The weighted losses of one network."""
        cfg, net = self.cfg, self.nets[name]
        draws = generator(clock.seed, "mixup", name, clock.epoch, clock.step)
        all_x, repeated, on_p = torch.cat(views), targets.repeat(len(views), 1), is_reliable.repeat(len(views))
        permutation = torch.randperm(len(all_x), generator=draws)
        seed, lam = int(torch.randint(2**62, (), generator=draws)), 1.0
        if not self.is_frozen:
            lam = float(np.random.default_rng(seed).beta(4, 4))
            lam = max(lam, 1 - lam)
            all_x = lam * all_x + (1 - lam) * all_x[permutation]
        passed = [net.both(x) for x in all_x.chunk(len(views))]  # one view per pass
        logits, z = (torch.cat(parts) for parts in zip(*passed, strict=True))
        query = z if self.is_frozen else net.both(views[0])[1]
        mixed = lam * repeated + (1 - lam) * repeated[permutation]
        log_probs, on_u = logits.float().log_softmax(1), ~on_p
        ramp = min((clock.epoch_frac - cfg.partial_epochs) / cfg.ramp_epochs, 1.0)  # type: ignore[operator]
        terms = {
            "loss_p": mean_over(on_p, -(mixed * log_probs).sum(1)),
            "loss_u": ramp * mean_over(on_u, (log_probs.exp() - mixed).square().mean(1)),
        }
        labels, self.prototypes = targets.argmax(1), self.prototypes.clone()
        for one, label, is_trusted in zip(query.detach(), labels.tolist(), is_reliable.tolist(), strict=True):
            if is_trusted:
                decay = cfg.prototype_decay
                self.prototypes[label] = decay * self.prototypes[label] + (1 - decay) * one
        self.prototypes = F.normalize(self.prototypes, dim=1)
        with torch.autocast("cpu", enabled=False):
            near = (z @ self.prototypes.T / cfg.prototype_temperature).log_softmax(1)
        divergence, error = torch.zeros(len(z)), torch.zeros(len(z))
        for share, told in ((lam, repeated), (1 - lam, repeated[permutation])):
            if share > 0:
                divergence = divergence + share * (torch.xlogy(told, told) - told * near).sum(1)
                error = error + share * (near.exp() - told).square().mean(1)
        terms["loss_prototypes"] = cfg.prototype_weight * (mean_over(on_p, divergence) + mean_over(on_u, error))
        with torch.no_grad():
            key = self.nets[f"{name}_key"].both(views[-1])[1]
        contrastive = self.contrastive(query, key, labels, is_reliable, self.queues[name])
        terms["loss_contrastive"] = cfg.contrastive_weight * contrastive
        self.push(self.queues[name], key, labels, is_reliable)
        return terms

    def contrastive(
        self, query: Tensor, key: Tensor, labels: Tensor, is_reliable: Tensor, queue: dict[str, Tensor]
    ) -> Tensor:
        """The cautious rule: masks anchor by anchor, one loss for all."""
        n = len(query)
        contrast = torch.cat([query, key, queue["keys"]])
        all_labels = torch.cat([labels, labels, queue["labels"]])
        all_reliable = torch.cat([is_reliable, is_reliable, queue["is_reliable"]])
        positives, denominators = [], []
        for i in range(n):
            is_same = all_labels == labels[i]
            is_positive = is_same & all_reliable & is_reliable[i]
            is_in = (all_labels >= 0) & (~is_same | is_positive)
            is_in[i] = is_positive[i] = False
            is_in[n + i] = is_positive[n + i] = True
            positives.append(is_positive)
            denominators.append(is_in)
        positive, denominator = torch.stack(positives).float(), torch.stack(denominators)
        with torch.autocast("cpu", enabled=False):
            sims = query @ contrast.T / self.cfg.contrastive_temperature
        log_probs = sims - sims.masked_fill(~denominator, -torch.inf).logsumexp(1, keepdim=True)
        return -((positive * log_probs).sum(1) / positive.sum(1)).mean()

    def push(self, queue: dict[str, Tensor], key: Tensor, labels: Tensor, is_reliable: Tensor) -> None:
        """First in, first out."""
        slots = (int(queue["place"]) + torch.arange(len(key))) % len(queue["keys"])
        queue["keys"][slots], queue["labels"][slots], queue["is_reliable"][slots] = key, labels, is_reliable
        queue["place"] = (queue["place"] + len(key)) % len(queue["keys"])

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> None:
        """Each network passes over all images; losses are kept image by image."""
        n = len(self.task.labels)
        evidence = ((1 - self.miss) * self.guesses + self.miss / self.task.n_classes).log()  # [N, C]
        for name in self.names:
            net = self.nets[name].eval()
            logits = []
            for rows in torch.arange(n).split(PASS_BATCH):
                x = self.look(rows, "clean", 0)
                with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype is not None):
                    logits.append(net(x).float())
            said = torch.cat(logits)  # [N, C]
            self.mean[name] = said.softmax(1).mean(0)
            probs = (said + self.cfg.guess_strength * evidence).softmax(1)
            ratio = self.ratio[name] if self.is_prior_known else torch.ones_like(self.prior)
            for _ in range(3):
                ratio = ratio * self.prior / normalised(probs * ratio).mean(0).clamp(min=1e-6)
                ratio = ratio / ratio.mean()
            self.ratio[name] = ratio
            self.beliefs[name] = normalised(probs * ratio)
            losses, is_divided = torch.zeros(n), torch.zeros(n, dtype=torch.bool)
            for i in range(n):
                is_candidate = self.guesses[i] > 0
                losses[i] = -self.beliefs[name][i][is_candidate].max().clamp(min=1e-8).log()
                is_divided[i] = not is_candidate.all()
            low, high = losses[is_divided].aminmax()
            self.histories[name] = [*self.histories[name], (losses - low) / (high - low)][-self.cfg.history_epochs :]
            average = torch.stack(self.histories[name]).mean(0)
            self.clean[name] = divide(average, seed=epoch + 1, where=is_divided).clean_probability
            self.nets[f"{name}_key"].load_state_dict(net.state_dict())


def normalised(values: Tensor) -> Tensor:
    """Rows [B, C] that sum to 1."""
    return values / values.sum(1, keepdim=True)


def mean_over(where: Tensor, values: Tensor) -> Tensor:
    """Mean of the rows kept, 0 if none is."""
    return values[where].mean() if where.any() else values.sum() * 0


class FeatureViews:
    """Stored features as a `types.ViewSource`: every view is the feature itself."""

    def __init__(self, feats: Tensor) -> None:
        self.feats, self.n_rows = feats, len(feats)

    def batch(self, rows: Tensor, view: str, *, seed: int, device: torch.device) -> Tensor:
        return self.feats[rows].to(device)

    def prefetch(self, rows: Tensor) -> None:
        pass


@dataclasses.dataclass
class Build:
    """Makes the networks (a `types.BuildNet`)."""

    is_frozen: bool
    n_features: int = 0

    def __call__(self, n_outputs: int, *, head: Any = "linear", hidden: int = 256) -> nn.Module:
        if not self.is_frozen:
            seed = int(torch.randint(2**31, ()))  # the loop seeds the global generator
            return backbones.build("resnet32", n_outputs, head=head, image_size_px=32, seed=seed)
        return backbones.Classifier(
            backbones.Stored(),
            name="stored",
            n_features=self.n_features,
            n_outputs=n_outputs,
            head=head,
            hidden=hidden,
            image_size_px=0,
            freeze=(),
        )


class MeasuredError(Exception):
    """All rounds are measured."""


class Alternating:
    """Co-Reg as the loop runs it, with an epoch of the reference before each of its own."""

    Config = coreg.Config
    setup, begin, step, predict = (staticmethod(f) for f in (coreg.setup, coreg.begin, coreg.step, coreg.predict))

    def __init__(self, look: Look, *, n_rounds: int, is_plain: bool) -> None:
        self.look, self.n_rounds, self.is_plain = look, n_rounds, is_plain
        self.reference: Reference | None = None
        self.seconds: list[tuple[float, float]] = []  # of the reference, of Co-Reg

    def plan(self, cfg: coreg.Config, task: Task, state: State, epoch: int) -> Any:
        if epoch == self.n_rounds:
            raise MeasuredError
        if self.reference is None:
            self.reference = Reference(cfg, task, state, self.look, is_plain=self.is_plain)
        began = time.process_time()
        self.reference.epoch(epoch)
        self.reference_s = time.process_time() - began
        self.began = time.process_time()
        return coreg.plan(cfg, task, state, epoch)

    def end_epoch(self, *args: Any) -> Any:
        ended = coreg.end_epoch(*args)
        self.seconds.append((self.reference_s, time.process_time() - self.began))
        return ended


def check_same(cfg: coreg.Config, task: Task, source: ViewSource, build: Build, *, n_steps: int = 3) -> float:
    """Largest difference between Co-Reg and the reference over losses and all that they remember, of 1 or the value."""
    cfg = dataclasses.replace(cfg, keep=task.n_classes, queue_size=2 * cfg.batch_size + 8)
    state = coreg.setup(cfg, task, build)  # type: ignore[arg-type]
    for net in state.nets.values():
        net.eval()

    def passes(net: str, rows: Tensor, view: str = "clean", output: str = "logits") -> Iterator[tuple[Tensor, Tensor]]:
        for some in rows.split(PASS_BATCH):
            module: Any = state.nets[net]
            with torch.no_grad():
                x = source.batch(some, view, seed=0, device=CPU)
                yield some, module.features(x) if output == "feats" else module(x)

    state, _ = coreg.begin(cfg, task, state, passes)  # type: ignore[arg-type]

    def look(rows: Tensor, view: str, seed: int) -> Tensor:
        return source.batch(rows, view, seed=seed, device=CPU)

    reference = Reference(cfg, task, state, look, is_plain=True)
    kinds = ("clean", "clean") if build.is_frozen else ("weak", "weak", "strong", "strong")
    worst = 0.0
    for step, rows in enumerate(torch.arange(n_steps * cfg.batch_size).split(cfg.batch_size)):
        views = [source.batch(rows, kind, seed=10 * step + i, device=CPU) for i, kind in enumerate(kinds)]
        clock = Clock(8, cfg.epochs, step, n_steps, 0)
        ours = coreg.step(cfg, task, state, {"train": Batch(rows, tuple(views), task.labels[rows])}, clock)
        theirs = reference.losses(rows, views, clock)
        state = ours.state
        for term, value in theirs.items():
            worst = max(worst, float((ours.logs[term] - value.detach()).abs()))
        worst = max(worst, float((ours.loss - sum(theirs.values())).detach().abs()))
    state, _ = coreg.end_epoch(cfg, task, state, passes, 8)  # type: ignore[arg-type]
    reference.end_epoch(8)
    pairs = [(state.memory["prototypes"], reference.prototypes)]
    for name in reference.names:
        word, queue = state.memory["divisions"][name], state.memory["queues"][name]
        pairs += [(queue["keys"], reference.queues[name]["keys"]), (word["clean"], reference.clean[name])]
        pairs += [(word["beliefs"]["probs"], reference.beliefs[name]), (word["mean"], reference.mean[name])]
    return max([worst, *(float(((a - b).abs() / b.abs().clamp(min=1)).max()) for a, b in pairs)])


def drawn_task(truth: Tensor, n_classes: int) -> Task:
    """Two candidates for each image; neither is the truth for about 30% of them."""
    n = len(truth)
    is_wrong = torch.rand(n) < 0.3
    first = torch.where(is_wrong, (truth + torch.randint(1, n_classes, (n,))) % n_classes, truth)
    second = (first + torch.randint(1, n_classes, (n,))) % n_classes
    classes = torch.stack([first, second], 1).sort(1).values.int().flatten()
    return Task(torch.full((n,), -1), tuple(map(str, range(n_classes))), Candidates(torch.arange(n + 1) * 2, classes))


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pixels", "features"])
    parser.add_argument("data", nargs="?", help="CIFAR-10 training images, Parquet with embedded images")
    parser.add_argument("--images", type=int)
    parser.add_argument("--classes", type=int, default=10, help="of the random features")
    parser.add_argument("--rounds", type=int, help="epochs of each: 1 from pixels, 3 on features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="the reference in float32 and channels first")
    options = parser.parse_args()
    is_frozen = options.what == "features"
    n, n_rounds = options.images or (10_000 if is_frozen else 2000), options.rounds or (3 if is_frozen else 1)
    torch.manual_seed(options.seed)
    source: ViewSource
    if is_frozen:
        truth = torch.randint(options.classes, (n,))
        feats = F.normalize(torch.randn(options.classes, 128)[truth] + 3 * torch.randn(n, 128), dim=1)
        source, task, build = FeatureViews(feats), drawn_task(truth, options.classes), Build(True, 128)

        def look(rows: Tensor, view: str, seed: int) -> Tensor:
            return feats[rows]
    else:
        if options.data is None:
            parser.error("pixels needs the Parquet file of the images")
        table, settings = load(options.data), ViewSettings(mean=MEAN, std=STD)
        images = np.stack([np.asarray(table.image(row)) for row in range(n)])
        source, build = PixelViews(PixelCache(images), settings), Build(False)
        task = drawn_task(torch.from_numpy(table.labels[:n].astype(np.int64)), 10)
        plain = (np.float32(255 * np.array(MEAN)), np.float32(255 * np.array(STD)))

        def look(rows: Tensor, view: str, seed: int) -> Tensor:
            draws, made = random.Random(seed), []
            for row in rows.tolist():
                decoded = np.asarray(table.image(row))
                if view == "clean":
                    made.append(((decoded - plain[0]) / plain[1]).transpose(2, 0, 1))
                else:
                    made.append(pil_view(decoded, settings, draws, strong=view == "strong"))
            return torch.from_numpy(np.stack(made))

    cfg = coreg.Config(
        epochs=100, partial_epochs=0, representation_after_epochs=0, batch_size=256 if is_frozen else 128
    )
    small = min(n, 1024 if is_frozen else 192)
    worst = check_same(
        dataclasses.replace(cfg, batch_size=small // 4), part_of(task, small), source_of(source, small), build
    )
    assert worst <= TOLERANCE, f"Co-Reg and the reference differ by {worst:.1e}: their times cannot be compared"

    measured = Alternating(look, n_rounds=n_rounds, is_plain=options.plain)
    for recipe, images_used in (
        (Alternating(look, n_rounds=1, is_plain=options.plain), small),
        (measured, n),
    ):  # warm up
        with contextlib.suppress(MeasuredError):
            train(
                recipe,  # type: ignore[arg-type]
                cfg,
                part_of(task, images_used),
                source_of(source, images_used),
                build,  # type: ignore[arg-type]
                options=LoopOptions(seed=options.seed, device="cpu", show_progress=False, n_evaluations=0),
            )
    reference_s, ours_s = (statistics.median(column) for column in zip(*measured.seconds, strict=True))
    print(
        f"{n:,} images, {options.what}, {task.n_classes} classes, batch {cfg.batch_size}, {n_rounds} rounds, seed "
        f"{options.seed}, {torch.get_num_threads()} threads; reference {'plain' if options.plain else 'like it'}"
    )
    print(f"largest difference from the reference {worst:.1e}")
    print(f"reference  {reference_s:7.2f} CPU s per epoch")
    print(f"labelwright   {ours_s:7.2f} CPU s per epoch   ratio {reference_s / ours_s:.2f}")


def part_of(task: Task, n: int) -> Task:
    """The first n images."""
    assert task.candidates is not None
    return dataclasses.replace(task, labels=task.labels[:n], candidates=task.candidates.take(torch.arange(n)))


def source_of(source: Any, n: int) -> ViewSource:
    """Views of the first n images."""
    return FeatureViews(source.feats[:n]) if isinstance(source, FeatureViews) else source.take(torch.arange(n))


if __name__ == "__main__":
    main()
