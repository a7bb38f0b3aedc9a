"""The one training loop: a recipe declares what an epoch visits and what a step computes; this does it."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from labelwright.errors import DataError, TrainingError
from labelwright.run_folder import Run
from labelwright.train import checkpoint, fsdp, progress
from labelwright.train.optim import (
    NewNorms,
    build_optimizer,
    hurry,
    lr_at,
    new_norms,
    optimizer_step,
    sam_radius_at,
    set_lr,
)
from labelwright.train.parts import set_parts
from labelwright.train.plans import check_plan, plan_from_dict, rows_of_step
from labelwright.train.processes import (
    accelerator_for,
    autocast_dtype,
    average_buffers,
    average_grads,
    exchanging,
    gather_rows,
    is_any,
    shard,
)
from labelwright.train.seeds import derive_seed, seed_torch
from labelwright.train.settings import TrainSettings
from labelwright.train.signals import stop_on_signal
from labelwright.types import (
    Batch,
    BuildNet,
    Clock,
    EpochPlan,
    Network,
    Output,
    Recipe,
    State,
    StepResult,
    Stream,
    Task,
    ViewSource,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG_EVERY_STEPS = 50
PASS_BATCH = 512
LOWER = "lower lr with --set lr=… in another --out; if it is low, look for features or pixels that are far too large"


@dataclass(frozen=True)
class LoopOptions:
    """How to run, as opposed to what to learn: nothing here changes the result on one device and precision.

    Parts (``accumulate``) change it by rounding, and where a layer normalises over the batch.
    """

    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    accumulate: int = 1  # parts in which a network sees a step's images; memory of one part, the gradient of all
    checkpoint_minutes: float = 5.0  # besides one at each epoch's end
    trains: bool = True  # False ends before the first epoch: what the recipe starts from
    n_evaluations: int = 10  # times the test images are scored, evenly spread, the last after training; for the curves
    show_progress: bool = True


@dataclass(frozen=True)
class Trained:
    """What training leaves: the state, and what it cost."""

    state: State
    seconds: float  # wall-clock seconds in training, over all resumes
    input_frac: float  # share of the training steps' time spent making batches, 0 to 1
    images_per_second: float  # images through `step` per second of step and input time
    warnings: tuple[str, ...]  # failure signs seen by the recipe, each once


def train(
    recipe: Recipe,
    cfg: TrainSettings,
    task: Task,
    views: ViewSource,
    build_net: BuildNet,
    *,
    options: LoopOptions,
    run: Run | None = None,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
) -> Trained:
    """Train a recipe from the start, or from the checkpoint in ``run`` if there is one.

    Args:
      recipe, cfg: a module of methods/ and its Config.
      task, views: labels and class names of the N training images, and the images.
      build_net: makes a fresh network of the wanted number of outputs.
      run: where to log and checkpoint; None keeps nothing.
      evaluate: scores a state on held-out images, for the curves; the loop never acts on what it returns.

    Under several processes each takes an equal share of every batch, and one process with the same batches gets the
    same parameters but for rounding, if batches divide evenly, no layer normalises over the batch, and the recipe
    scales by `processes.mean_share` what it divides by anything but the number of rows. Logged losses and checkpointed
    batch-norm statistics are the first process's; the statistics are averaged at the end of each epoch.

    Networks in ``state.averages`` are in eval mode at each epoch's start, the others in training mode. The global
    random generator is seeded anew before plan, step and end_epoch, so that nothing but the seed decides.

    Raises:
      TrainingError: the loss or a weight stopped being finite.
      DataError: the checkpoint in ``run`` is broken, or of other networks.
      KeyboardInterrupt: after Ctrl-C or a termination request, with a checkpoint written.
    """
    return _Loop(recipe, cfg, task, views, options, run, evaluate).run_from_setup(build_net)


@dataclass
class _Loop:
    """One training run's moving parts, so that the phases below read as short functions."""

    recipe: Recipe
    cfg: TrainSettings
    task: Task
    views: ViewSource
    options: LoopOptions
    run: Run | None
    evaluate: Callable[[State], Mapping[str, Any]] | None

    def __post_init__(self) -> None:
        self.accelerator: Accelerator = accelerator_for(self.options.device)
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        self.dtype = autocast_dtype(self.device, self.options.precision)
        sets = None if self.task.candidates is None else self.task.candidates.to(self.device)
        self.task = dataclasses.replace(self.task, labels=self.task.labels.to(self.device), candidates=sets)
        self.epoch, self.step = 0, 0
        self.has_begun, self.is_over = False, False
        self.plan: EpochPlan | None = None
        self.sums: dict[str, Tensor | float] = {}  # this epoch's logs, weighted by rows kept; read where they are shown
        self.spent = {"seconds": 0.0, "input_s": 0.0, "step_s": 0.0, "images": 0.0}
        self.warnings: list[str] = []
        self.norms: NewNorms = []
        self.kept: dict[str, nn.Module] = {}  # of networks that are shared out, what puts them together again
        self.state: State
        self.optimizer: torch.optim.Optimizer | None = None  # where steps are taken: torch takes a second to load it

    # ---- start ------------------------------------------------------------------------------------------------------

    def run_from_setup(self, build_net: BuildNet) -> Trained:
        torch.manual_seed(derive_seed(self.options.seed, "setup"))
        state = self.recipe.setup(self.cfg, self.task, build_net)
        for net in state.nets.values():
            net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name in state.averages:
            state.nets[name].requires_grad_(False)
        self.state = state
        if self.cfg.takes_steps and self.options.trains:
            sources = {name: average.source for name, average in state.averages.items()}
            self.kept = fsdp.shared_out(state.nets, sources, self.device)
            self.optimizer = build_optimizer(self.trained_nets.values(), self.cfg)
            self.norms = new_norms(self.trained_nets.values())
        saved = None if self.run is None else checkpoint.newest(self.run.checkpoint)
        if saved is not None:
            self.restore(saved)
        elif self.run is not None and self.is_main:
            self.run.cut_metrics(0)
        is_shown = self.options.show_progress and self.is_main
        with exchanging(), progress.bar(is_shown) as live:
            if not self.has_begun:  # Ctrl-C ends it at once: nothing is known yet that could be kept
                with progress.heartbeat("solving", show=is_shown):
                    self.begin()
            if self.options.trains:
                with stop_on_signal() as stop:
                    self.run_epochs(stop, live)
        self.state = dataclasses.replace(self.state, nets=fsdp.whole_again(self.state.nets, self.kept))
        steps_s = self.spent["input_s"] + self.spent["step_s"]
        return Trained(
            state=self.state,
            seconds=self.spent["seconds"],
            input_frac=self.spent["input_s"] / max(steps_s, 1e-9),
            images_per_second=self.spent["images"] / max(steps_s, 1e-9),
            warnings=tuple(self.warnings),
        )

    @property
    def trained_nets(self) -> dict[str, nn.Module]:
        return {name: net for name, net in self.state.nets.items() if name not in self.state.averages}

    # ---- epochs -----------------------------------------------------------------------------------------------------

    def run_epochs(self, stop: threading.Event, live: progress.Bar) -> None:
        started = last_saved = time.monotonic()
        before = self.spent["seconds"]
        while self.epoch < self.cfg.epochs and not self.is_over:
            if self.plan is None:
                torch.manual_seed(derive_seed(self.options.seed, "plan", self.epoch))
                self.plan = self.recipe.plan(self.cfg, self.task, self.state, self.epoch)
                check_plan(self.plan, self.views.n_rows)
            for name, net in self.state.nets.items():
                net.train(name not in self.state.averages)
                set_parts(net, self.options.accumulate)
            hurry(self.norms, max(1, self.cfg.epochs * self.plan.n_steps))
            while self.step < self.plan.n_steps:
                result = self.run_step(self.plan)
                self.step += 1
                live.update(self.epoch, self.cfg.epochs, self.step, self.plan.n_steps, self.epoch_means)
                self.spent["seconds"] = before + time.monotonic() - started
                if self.step % LOG_EVERY_STEPS == 0:
                    self.log_step(result)
                if is_any(stop.is_set(), self.device):  # all of them, at the same step
                    self.save()
                    raise KeyboardInterrupt
                is_due = time.monotonic() - last_saved > 60 * self.options.checkpoint_minutes
                if is_any(is_due, self.device) if self.kept else is_due:  # weights that are shared out take all to save
                    self.save()
                    last_saved = time.monotonic()
            self.end_epoch()
            self.spent["seconds"] = before + time.monotonic() - started
            self.epoch, self.step, self.plan, self.sums = self.epoch + 1, 0, None, {}
            self.save()
            last_saved = time.monotonic()
            if is_any(stop.is_set(), self.device):
                raise KeyboardInterrupt

    def begin(self) -> None:
        """What the recipe does with whole passes before its first epoch; checkpointed, so that a resume has it."""
        started = time.monotonic()
        torch.manual_seed(derive_seed(self.options.seed, "begin"))
        self.state, logs = self.recipe.begin(self.cfg, self.task, self.state, self.passes)
        self.has_begun = True
        self.check_weights("what the method starts from")
        record = {"kind": "begin", **logs}
        self.keep_warnings(record)
        self.spent["seconds"] += time.monotonic() - started
        if not logs:  # nothing was done that a resume would have to do again
            return
        if self.run is not None and self.is_main:
            self.run.log(record, step=0)
        self.save()

    def keep_warnings(self, record: dict[str, Any]) -> None:
        """Move a record's warnings to the run's, each once."""
        for warning in record.pop("warnings", ()):
            if warning not in self.warnings:
                self.warnings.append(warning)

    def run_step(self, plan: EpochPlan) -> StepResult:
        began = time.monotonic()
        clock = Clock(self.epoch, self.cfg.epochs, self.step, plan.n_steps, self.options.seed)
        batches = {name: self.batch(name, stream) for name, stream in plan.streams.items()}
        self.hint_next_batches(plan)
        made = time.monotonic()
        assert self.optimizer is not None, "only methods that take steps plan them"
        set_lr(self.optimizer, lr_at(self.cfg, clock.epoch_frac))
        results: list[StepResult] = []

        def loss_of() -> Tensor:
            # The same seed for both forwards of a sharpness-aware step: they must drop the same units.
            seed_torch(derive_seed(self.options.seed, "step", self.epoch, self.step), self.device)
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                result = self.recipe.step(self.cfg, self.task, self.state, batches, clock)
            results.append(result)
            return result.loss

        optimizer_step(
            self.optimizer,
            self.trained_nets,
            loss_of,
            radius=sam_radius_at(self.cfg, clock.epoch_frac),
            max_grad_norm=self.cfg.max_grad_norm,
            reduce_grads=lambda params: average_grads(params, self.accelerator),
        )
        result = results[0]  # the forward at the unperturbed weights
        self.state = result.state
        self.follow_averages()
        self.add_logs(result)
        self.spent["input_s"] += made - began
        self.spent["step_s"] += time.monotonic() - made
        self.spent["images"] += sum(len(batch.rows) for batch in batches.values()) * self.accelerator.num_processes
        return result

    def end_epoch(self) -> None:
        for net in self.state.nets.values():
            average_buffers(net, self.accelerator)
        torch.manual_seed(derive_seed(self.options.seed, "end_epoch", self.epoch))
        self.state, logs = self.recipe.end_epoch(self.cfg, self.task, self.state, self.passes, self.epoch)
        self.is_over = bool(logs.get("stop", False))
        record = {"kind": "epoch", "epoch": self.epoch, **self.epoch_means(), **logs}
        record["lr"] = lr_at(self.cfg, self.epoch + 1 - 1e-6)
        record["images_per_second"] = self.spent["images"] / max(self.spent["input_s"] + self.spent["step_s"], 1e-9)
        self.keep_warnings(record)
        self.check_finite(record.get("loss", 0.0), f"epoch {self.epoch}")
        self.check_weights(f"epoch {self.epoch}")
        n, before, after = self.options.n_evaluations, self.epoch, self.epoch + 1
        is_scored = self.is_over or after * n // self.cfg.epochs > before * n // self.cfg.epochs
        if self.evaluate is not None and is_scored and n > 0:
            record["test"] = dict(self.evaluate(self.state))
        if self.run is not None and self.is_main:
            self.run.log(record, step=self.epoch + 1)

    # ---- pieces -----------------------------------------------------------------------------------------------------

    def batch(self, name: str, stream: Stream) -> Batch:
        rows = self.rows_of(name, stream, self.step)
        views = []
        for i, view in enumerate(stream.views):
            # No process in the seed: a view depends on its seed and row, whichever process makes it.
            seed = derive_seed(self.options.seed, "view", self.epoch, self.step, name, i)
            views.append(self.views.batch(rows, view, seed=seed, device=self.device))
        rows = rows.to(self.device)
        return Batch(rows=rows, views=tuple(views), labels=self.task.labels[rows])

    def rows_of(self, name: str, stream: Stream, step: int) -> Tensor:
        n = self.accelerator.num_processes
        return shard(rows_of_step(name, stream, self.options.seed, self.epoch, step, multiple_of=n), self.accelerator)

    def hint_next_batches(self, plan: EpochPlan) -> None:
        if self.step + 1 < plan.n_steps:
            for name, stream in plan.streams.items():
                self.views.prefetch(self.rows_of(name, stream, self.step + 1))

    def follow_averages(self) -> None:
        with torch.no_grad():
            for name, average in self.state.averages.items():
                kept, new = self.state.nets[name], self.state.nets[average.source]
                for old, now in zip(kept.parameters(), new.parameters(), strict=True):
                    old.lerp_(now, 1.0 - average.decay)
                for held, current in zip(kept.buffers(), new.buffers(), strict=True):
                    # Batch-norm statistics belong to their weights: averaged alike. Counters are taken over.
                    if held.is_floating_point():
                        held.lerp_(current, 1.0 - average.decay)
                    else:
                        held.copy_(current)

    def passes(
        self, net: str, rows: Tensor, view: str = "clean", output: Output = "logits"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See types.Passes."""
        module = self.state.nets[net]
        outputs = cast(Network, module).features if output == "feats" else module
        was_training = module.training
        module.eval()
        n = self.accelerator.num_processes
        try:
            for start in range(0, len(rows), PASS_BATCH * n):
                chunk = rows[start : start + PASS_BATCH * n].cpu()
                even = torch.cat([chunk, chunk[:1].expand(-len(chunk) % n)])  # every process needs equally many
                mine = shard(even, self.accelerator)
                seed = derive_seed(self.options.seed, "pass", self.epoch)
                x = self.views.batch(mine, view, seed=seed, device=self.device)
                with (
                    torch.no_grad(),
                    torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None),
                ):
                    out = outputs(x).float()
                yield chunk.to(self.device), gather_rows(out)[: len(chunk)]
        finally:
            module.train(was_training)

    # ---- logs and checkpoints ---------------------------------------------------------------------------------------

    def add_logs(self, result: StepResult) -> None:
        """Nothing is read from the device here: it would wait for every step."""
        weight = double(result.n_kept)
        self.sums["n_kept"] = self.sums.get("n_kept", 0.0) + weight
        for key, value in {"loss": result.loss, **result.logs}.items():
            self.sums[key] = self.sums.get(key, 0.0) + weight * double(value)

    def epoch_means(self) -> dict[str, float]:
        sums = {key: float(value) for key, value in self.sums.items()}
        kept = max(sums.pop("n_kept", 0.0), 1e-12)
        return {key: value / kept for key, value in sums.items()}

    def check_finite(self, loss: float, at: str) -> None:
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} in {at}", fix=LOWER)

    def check_weights(self, at: str) -> None:
        """The last steps of an epoch change weights that no loss is computed from any more."""
        states = (net.state_dict() for net in self.state.nets.values())
        floats = ((name, fsdp.own(x)) for state in states for name, x in state.items() if x.is_floating_point())
        bad = next((name for name, value in floats if not bool(torch.isfinite(value).all())), "")
        if is_any(bool(bad), self.device) if self.kept else bad:
            raise TrainingError(f"the weights {bad or 'of another process'} are no longer numbers in {at}", fix=LOWER)

    def log_step(self, result: StepResult) -> None:
        loss = float(result.loss.detach())
        self.check_finite(loss, f"epoch {self.epoch}, step {self.step}")
        if self.run is not None and self.is_main and self.plan is not None:
            step = self.epoch * self.plan.n_steps + self.step
            self.run.log({"kind": "step", "epoch": self.epoch, "step": self.step, "loss": loss}, step=step)

    def save(self) -> None:
        if self.run is None or not (self.is_main or self.kept):
            return
        whole = checkpoint.state_dict(self.state)  # of shares, by all processes together
        optimizer = {} if self.optimizer is None else fsdp.whole(self.optimizer.state_dict())
        if not self.is_main:
            return
        self.run.check_there()
        payload = {
            "format": checkpoint.FORMAT,
            "epoch": self.epoch,
            "step": self.step,
            "plan": None if self.plan is None else dataclasses.asdict(self.plan),
            "sums": {key: float(value) for key, value in self.sums.items()},
            "spent": self.spent,
            "warnings": self.warnings,
            "has_begun": self.has_begun,
            "is_over": self.is_over,
            "metrics_size": self.run.metrics_size(),
            "optimizer": optimizer,
            **whole,
        }
        checkpoint.save_atomically(payload, self.run.checkpoint)

    def restore(self, saved: Mapping[str, Any]) -> None:
        try:
            self.state = checkpoint.load_state(self.state, saved, self.device)
            if self.optimizer is not None:
                self.optimizer.load_state_dict(saved["optimizer"])
                fsdp.share_state(self.optimizer)
        except (KeyError, RuntimeError, ValueError) as error:
            raise DataError(
                f"the checkpoint is not of this method and model ({str(error).splitlines()[0]})",
                fix="resume with the settings that wrote it, or start again in a new folder",
            ) from error
        self.epoch, self.step, self.has_begun = saved["epoch"], saved["step"], saved["has_begun"]
        self.is_over = saved.get("is_over", False)  # absent from checkpoints of before recipes could end early
        self.plan = None if saved["plan"] is None else plan_from_dict(saved["plan"])
        self.sums, self.spent, self.warnings = dict(saved["sums"]), dict(saved["spent"]), list(saved["warnings"])
        if self.run is not None and self.is_main:
            self.run.cut_metrics(saved["metrics_size"])


def double(value: Tensor | float) -> Tensor | float:
    """A number in double precision, where it is.

    Example:
      >>> double(torch.tensor(0.5)), double(2)
      (tensor(0.5000, dtype=torch.float64), 2.0)
    """
    return value.detach().double() if isinstance(value, Tensor) else float(value)
