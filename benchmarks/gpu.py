"""One GPU and a quarter of an hour: parity with the CPU, where a step's time goes, and full-length cells, best first.

    python benchmarks/gpu.py --data DATA [--minutes 14] [--out gpu] [--device cuda] [--csv gpu/gpu.csv] [--toy]

DATA holds cifar10-train.parquet and cifar10-test.parquet. The parts, in this order, each only if it has not finished
before and there is time for it:

 parity     losses of the first steps of CE, CVS, Co-Reg and LPS in float32 on the CPU and on the device
 speed      ResNet-32, 128 images a step: images/s of the loop, with and without torch.compile of the backbone, and of a
            plain loop with the two lines that any PyTorch user would add (bf16, channels-last), its images made before
 profile    what the host does in a step of CVS, Co-Reg and LPS: kernels launched, synchronisations, numbers read back
 cells      `labelwright bench`: CVS and the other losses of CIFAR-10-LT-100 at 200 epochs, Co-Reg from pixels; a cell
            that is interrupted at the time limit resumes from its checkpoint when the script runs again

Results are added to the CSV as they come, in the columns of docs/results. With --toy everything is as short as it can
be: to see on a CPU that the script works before a GPU is at hand.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from labelwright.benchmarking.results import Row, add_rows
from labelwright.data.cache import PixelCache
from labelwright.data.views import PixelViews, ViewSettings
from labelwright.encoders import backbones
from labelwright.methods.registry import method_named
from labelwright.train.loop import LoopOptions, train
from labelwright.types import Candidates, Task

NAMES = tuple("0123456789")
VIEW = ViewSettings(mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
CELLS = (
    ("cifar10-lt-100", "cvs", True),
    ("cifar10-lt-100", "ce", True),
    ("coreg-pixels", "coreg", False),
    ("cifar10-lt-100", "vs", True),
    ("cifar10-lt-100", "la", True),
    ("cifar10-lt-100", "ldam_drw", True),
)
"""Table, cell, whether at the published schedule."""

LEAST_S = {"parity": 60, "speed": 60, "profile": 30, "cells": 60}  # a part is not begun with less left
PARITY_STEPS, PARITY_OFF = 6, 2e-3  # relative difference of the losses that float32 sums in another order may lead to


@dataclass(frozen=True)
class Session:
    """What every part gets."""

    data: Path
    out: Path
    csv: Path
    device: str
    toy: bool
    ends: float

    @property
    def left_s(self) -> float:
        """Seconds to the end."""
        return self.ends - time.monotonic()

    @property
    def hardware(self) -> str:
        """Name of the device."""
        return torch.cuda.get_device_name() if self.device == "cuda" else f"cpu ({platform.machine()})"

    def keep(self, part: str, cell: str, **metrics: float) -> None:
        """Add numbers to the CSV and print them."""
        rows: list[Row] = [
            {
                "table": "gpu.py",
                "model": "",
                "cell": f"{part}, {cell}",
                "title": f"{part}, {cell}",
                "metric": name,
                "value": f"{value:.6g}",
                "seed": "0",
                "hardware": self.hardware,
                "note": "toy length" if self.toy else "",
            }
            for name, value in metrics.items()
        ]
        add_rows(self.csv, rows)
        print(f"{part}, {cell}: " + ", ".join(f"{name} {value:.6g}" for name, value in metrics.items()), flush=True)


def noise(n: int, size_px: int) -> tuple[PixelViews, torch.Tensor]:
    """Images whose brightness is their class, and the classes: what they show does not matter here."""
    draws = np.random.default_rng(0)
    labels = np.arange(n) % 10
    images = draws.integers(0, 40, (n, size_px, size_px, 3)) + 20 * labels[:, None, None, None]
    return PixelViews(PixelCache(images.astype(np.uint8)), VIEW), torch.from_numpy(labels)


def task_of(name: str, labels: torch.Tensor) -> Task:
    """Labels as a method wants them: candidates for Co-Reg, five unknown classes for LPS."""
    if name == "coreg":
        draws = np.random.default_rng(1)
        sets = (F.one_hot(labels, 10) + torch.from_numpy(draws.random((len(labels), 10)) < 0.2)) > 0
        rows, classes = sets.nonzero(as_tuple=True)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=len(labels)).cumsum(0)])
        return Task(torch.full_like(labels, -1), NAMES, Candidates(offsets, classes.int()))
    if name == "lps":
        known = (labels < 5) & (torch.arange(len(labels)) // 10 % 2 == 0)
        return Task(torch.where(known, labels, -1), NAMES[:5], n_novel=5)
    return Task(labels, NAMES)


def build(n: int, *, head: Any = "linear", hidden: int = 256) -> backbones.Classifier:
    """A network from random weights; the recipe chooses its head."""
    return backbones.build("resnet32", n, head=head, hidden=hidden, image_size_px=32, seed=0)


class Build:
    """A `types.BuildNet` of random weights."""

    is_frozen = False
    is_pretrained = False
    __call__ = staticmethod(build)

    def towers(self, tune: str = "none") -> Any:
        """There is no text side."""
        raise NotImplementedError


def losses_of(name: str, device: str, n_steps: int, batch_size: int, size_px: int) -> list[float]:
    """Loss of each of the first steps in float32."""
    views, labels = noise(batch_size * n_steps, size_px)
    recipe = method_named(name).recipe
    found: list[float] = []

    class Watched:
        def __getattr__(self, key: str) -> Any:
            return getattr(recipe, key)

        def step(self, *args: Any) -> Any:
            result = recipe.step(*args)
            found.append(float(result.loss.detach()))
            return result

    cfg = recipe.Config(epochs=1, batch_size=batch_size)
    options = LoopOptions(device=device, precision="fp32", show_progress=False, n_evaluations=0)
    train(Watched(), cfg, task_of(name, labels), views, Build(), options=options)  # type: ignore[arg-type]
    return found[:n_steps]


def parity(session: Session) -> None:
    """The same steps on the CPU and on the device."""
    for name in ("cvs", "lps") if session.toy else ("ce", "cvs", "coreg", "lps"):
        size = (2, 16, 8) if session.toy else (PARITY_STEPS, 64, 32)
        here, there = (losses_of(name, device, *size) for device in ("cpu", session.device))
        off = max(abs(a - b) / max(1e-6, abs(a)) for a, b in zip(here, there, strict=True))
        session.keep("parity", name, first_loss=here[0], largest_relative_difference=off)
        if not off <= PARITY_OFF:
            print(f"NOT the same: {name}: {here} on the CPU, {there} on {session.device}", flush=True)


def speed(session: Session) -> None:
    """Images a second of the loop, and of a plain loop with the same network."""
    views, labels = noise(*((128, 8) if session.toy else (25_600, 32)))
    for compiled in (False, True):
        if compiled and session.device != "cuda":  # a CPU would need a compiler
            continue

        def made(n_outputs: int, *, compiled: bool = compiled, **how: Any) -> Any:
            net = build(n_outputs, **how)
            if compiled:
                net.backbone.compile()
            return net

        made.is_frozen = made.is_pretrained = False  # type: ignore[attr-defined]
        cfg = method_named("ce").recipe.Config(epochs=1 if session.toy else 3)
        options = LoopOptions(device=session.device, show_progress=False, n_evaluations=0)
        recipe = method_named("ce").recipe
        began = time.perf_counter()
        trained = train(recipe, cfg, Task(labels, NAMES), views, made, options=options)  # type: ignore[arg-type]
        session.keep(
            "speed",
            "loop, compiled" if compiled else "loop",
            images_per_second=trained.images_per_second,
            input_frac=trained.input_frac,
            seconds=time.perf_counter() - began,
        )
    session.keep(
        "speed", "plain loop, bf16, channels-last", images_per_second=plain_loop(views, labels, session.device)
    )


def plain_loop(views: PixelViews, labels: torch.Tensor, device: str) -> float:
    """Images a second of a loop on images that lie on the device already, normalised and not augmented."""
    x = views.batch(torch.arange(min(len(labels), 12_800)), "clean", seed=0, device=torch.device(device))
    y = labels.to(device)
    net = build(10).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    began = 0.0
    for _ in range(2):  # the first warms up
        synchronise(device)
        began = time.perf_counter()
        for rows in torch.arange(len(x), device=device).split(128):
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = F.cross_entropy(net(x[rows]).float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronise(device)
    return len(x) / (time.perf_counter() - began)


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def profile(session: Session) -> None:
    """Synchronisations and launches in a step."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if session.device == "cuda" else [])
    for name in ("cvs",) if session.toy else ("cvs", "coreg", "lps"):
        n_steps, batch_size, size_px = (2, 16, 8) if session.toy else (20, 128, 32)
        with torch.profiler.profile(activities=activities) as found:
            train_briefly(name, session.device, n_steps, batch_size, size_px)
        events = {event.key: event.count for event in found.key_averages()}
        waits = sum(n for key, n in events.items() if "Synchronize" in key)
        read = events.get("aten::_local_scalar_dense", 0)
        launches = sum(n for key, n in events.items() if "LaunchKernel" in key)
        session.keep(
            "profile",
            name,
            synchronisations_per_step=waits / n_steps,
            numbers_read_per_step=read / n_steps,
            launches_per_step=launches / n_steps,
        )
        found.export_chrome_trace(str(session.out / f"trace-{name}.json"))


def train_briefly(name: str, device: str, n_steps: int, batch_size: int, size_px: int) -> None:
    """So many steps, as a user's run takes them."""
    views, labels = noise(batch_size * n_steps, size_px)
    recipe = method_named(name).recipe
    options = LoopOptions(device=device, show_progress=False, n_evaluations=0)
    cfg = recipe.Config(epochs=1, batch_size=batch_size)
    train(recipe, cfg, task_of(name, labels), views, Build(), options=options)  # type: ignore[arg-type]


def cells(session: Session) -> Iterator[str]:
    """Cells of the published tables, until the time is over; their names as they finish."""
    for table, cell, full in CELLS:
        if session.left_s < LEAST_S["cells"] and not session.toy:
            return
        words = ["--table", table, "--cells", cell, "--seeds", "0", "--data", str(session.data), "--device"]
        words += [session.device, "--out", str(session.out / "bench"), "--csv", str(session.csv)]
        words += ["--full"] if full and not session.toy else []
        began = time.monotonic()
        done = in_time([sys.executable, "-m", "labelwright.cli", "bench", *words], session.left_s - 10)
        if done is None:
            print(f"{table} {cell}: interrupted at the time limit; the next run resumes it", flush=True)
            return
        if done:
            print(f"{table} {cell}: failed", flush=True)
            continue
        print(f"{table} {cell}: {time.monotonic() - began:.0f} s", flush=True)
        yield f"{table} {cell}"


def in_time(command: Sequence[str], limit_s: float) -> int | None:
    """Exit code of a command; None if it was interrupted at the limit, which leaves a checkpoint."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as child:
        try:
            return child.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
            return None


PARTS: dict[str, Callable[[Session], None]] = {"parity": parity, "speed": speed, "profile": profile}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what has not finished yet and fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    session = Session(
        given.data,
        given.out,
        given.csv or given.out / "gpu.csv",
        given.device,
        given.toy,
        time.monotonic() + 60 * given.minutes,
    )
    record = given.out / "finished.json"
    finished: list[str] = json.loads(record.read_text()) if record.exists() else []
    for name, part in PARTS.items():
        if name in finished or session.left_s < LEAST_S[name]:
            continue
        try:
            part(session)
        except Exception as error:  # the next part is worth its time all the same
            print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
            continue
        finished.append(name)
        record.write_text(json.dumps(finished))
    for _ in cells(session):
        pass
    print(f"{session.left_s:.0f} s left; results in {session.csv}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
