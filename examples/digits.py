"""Train a small convolutional network on handwritten digits, eagerly and compiled.

Both runs start from the same weights and see the same batches, so their losses must agree: the
program ends with status 1 where they do not, or where either network reads fewer than 97 % of the
test digits. It writes the loss curves as a picture, and beside it the generated C.

The data are the 1,797 images of 8 x 8 pixels that come with scikit-learn. The last batch of an
epoch is smaller than the others. It is kept: another shape is another trace, compiled once more
at its first call, and no image is left out. The step times are those of the full batches.

Run it:  python examples/digits.py --out out        (start reading at `main`)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import tracegrad
from tracegrad import nn, optim
from tracegrad.optim import lr_scheduler

COMPARED = 20
"""So many first losses of the two runs must agree ..."""
LIMITS = {"float32": 1e-5, "float64": 1e-11}
"""... to this relative difference: later ones drift apart as rounding errors grow in training."""
ACCURACY = 0.97


@dataclass
class Data:
    """Images (n, 1, 8, 8) in [0, 1] and labels (n,), for training and for the test."""

    images: tracegrad.Tensor
    labels: tracegrad.Tensor
    test_images: tracegrad.Tensor
    test_labels: tracegrad.Tensor


@dataclass
class Run:
    """What one training run leaves behind; times in seconds."""

    name: str
    losses: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)  # loss and backward, full batches
    steps: list[float] = field(default_factory=list)  # the same with the optimizer
    first: float = 0.0  # the first call: for the compiled run with capture and compiler
    total: float = 0.0
    accuracy: float = 0.0


def load_data(seed: int, dtype: tracegrad.dtype, device: str) -> Data:
    """The digits in random order; a fifth of them is kept for the test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = tracegrad.tensor(digits.images[order, None] / 16.0).to(device, dtype)
    labels = tracegrad.tensor(digits.target[order], device=device)
    test = len(order) // 5
    return Data(images[test:], labels[test:], images[:test], labels[:test])


def make_model(seed: int, dtype: tracegrad.dtype, device: str) -> nn.Sequential:
    """Two convolutions and two linear layers; the same seed gives the same weights."""
    tracegrad.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(),
        nn.Linear(64, 10),
    ).to(device, dtype)  # fmt: skip


def batches(data: Data, size: int, epochs: int, seed: int) -> Iterator[tuple[Any, Any]]:
    """Every image once per epoch, in an order that the seed decides."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(data.labels))
        for start in range(0, len(order), size):
            chosen = tracegrad.tensor(order[start : start + size])
            yield data.images[chosen], data.labels[chosen]


def accuracy(model: nn.Module, images: tracegrad.Tensor, labels: tracegrad.Tensor) -> float:
    """The share of images whose digit is read correctly."""
    with tracegrad.no_grad():
        hits = (model(images).argmax(1) == labels).sum()
    return hits.item() / len(labels)


def train(
    name: str, step: Callable[..., Any], model: nn.Module, data: Data, options: argparse.Namespace,
    advance: Callable[[], None],
) -> Run:  # fmt: skip
    """Train `model`, of which `step(images, labels)` is the loss."""
    run = Run(name)
    # Two measures keep the comparison of the runs a fair one. Adam divides by the size of the
    # gradient: with the usual eps of 1e-8 a weight whose gradient is all rounding error would move
    # as far as any other. And a rounding error may flip a ReLU or the winner of a pooling window,
    # which changes a gradient at once; the first epoch warms up, so that a flip moves little.
    optimizer = optim.Adam(model.parameters(), lr=options.lr, eps=1e-4)
    warm_up = -(-len(data.labels) // options.batch_size)
    schedule = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warm_up))
    started = time.perf_counter()
    for images, labels in batches(data, options.batch_size, options.epochs, options.seed):
        begin = time.perf_counter()
        loss = step(images, labels)
        loss.backward()
        middle = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        end = time.perf_counter()
        if not run.losses:
            run.first = middle - begin
        elif len(labels) == options.batch_size:
            run.gradients.append(middle - begin)
            run.steps.append(end - begin)
        run.losses.append(loss.item())
        advance()
    run.total = time.perf_counter() - started
    run.accuracy = accuracy(model, data.test_images, data.test_labels)
    return run


def make_loss(model: nn.Module) -> Callable[..., Any]:
    """The loss of `model` as a function of images and labels."""
    criterion = nn.CrossEntropyLoss()

    def loss_fn(images: Any, labels: Any) -> Any:
        return criterion(model(images), labels)

    return loss_fn


def both_runs(data: Data, options: argparse.Namespace) -> tuple[Run, Run, Any]:
    """Train eagerly, then compiled; also returns the compiled function."""
    total = -(-len(data.labels) // options.batch_size) * options.epochs
    progress = Progress(
        TextColumn("{task.description:8}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("steps"), TimeElapsedColumn(), console=Console(stderr=True),
    )  # fmt: skip
    runs = []
    with progress:
        tasks = {name: progress.add_task(name, total=total) for name in ("eager", "compiled")}
        for name, task in tasks.items():
            model = make_model(options.seed, getattr(tracegrad, options.dtype), options.device)
            step = make_loss(model)
            if name == "compiled":
                step = tracegrad.compile(step, wait=True)  # its first call is timed
            runs.append(train(name, step, model, data, options, partial(progress.advance, task)))
    return runs[0], runs[1], step


def differences(eager: Run, compiled: Run) -> np.ndarray:
    """Relative differences of the losses, step by step."""
    a, b = np.array(eager.losses), np.array(compiled.losses)
    return np.abs(a - b) / np.maximum(np.abs(a), np.finfo(np.float64).tiny)


def report(eager: Run, compiled: Run, largest: float, options: argparse.Namespace) -> None:
    """Print the two runs side by side."""
    table = Table(
        title=f"{options.dtype}, batches of {options.batch_size}, {options.epochs} epochs"
    )
    for heading in ("", "eager", "compiled", "eager / compiled"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(label: str, of: Callable[[Run], float], scale: float = 1e3, unit: str = "ms") -> None:
        a, b = of(eager), of(compiled)
        table.add_row(label, f"{a * scale:.2f} {unit}", f"{b * scale:.2f} {unit}", f"{a / b:.2f}")

    row("loss and gradients, median", lambda r: median(r.gradients))
    row("loss and gradients, minimum", lambda r: min(r.gradients))
    row("loss and gradients, first call", lambda r: r.first)
    row("whole step, median", lambda r: median(r.steps))
    row("whole step, minimum", lambda r: min(r.steps))
    row("whole run", lambda r: r.total, 1.0, "s")
    table.add_row("last loss", f"{eager.losses[-1]:.4f}", f"{compiled.losses[-1]:.4f}", "")
    table.add_row("test accuracy", f"{eager.accuracy:.2%}", f"{compiled.accuracy:.2%}", "")
    Console().print(table)
    print(f"largest relative difference of the first {COMPARED} losses: {largest:.1e}")


def draw(eager: Run, compiled: Run, path: Path, options: argparse.Namespace) -> None:
    """The two loss curves, and below them how far they are apart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, below) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 6), height_ratios=(3, 1), layout="constrained"
    )
    top.semilogy(eager.losses, color="tab:blue", linewidth=2.5, alpha=0.5, label="eager")
    top.semilogy(compiled.losses, color="black", linewidth=0.8, label="compiled")
    top.set_ylabel("training loss")
    top.set_title("Handwritten digits: the same training, eager and compiled")
    top.legend()
    apart = differences(eager, compiled)
    if apart.any():
        below.semilogy(np.where(apart > 0, apart, np.nan), ".", color="tab:red", markersize=3)
    else:
        below.plot(apart, color="tab:red")
    limit = LIMITS[options.dtype]
    below.plot((0, COMPARED), (limit, limit), color="gray", label=f"limit, first {COMPARED} steps")
    below.set_ylabel("relative difference")
    below.set_xlabel("step")
    below.legend(loc="upper center")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def faults(eager: Run, compiled: Run, largest: float, options: argparse.Namespace) -> list[str]:
    """What is not as it must be, in words."""
    found = []
    if not largest < LIMITS[options.dtype]:
        found.append(
            f"the first {COMPARED} losses of the two runs differ by up to {largest:.1e} (relative); "
            f"the limit for {options.dtype} is {LIMITS[options.dtype]:.0e}"
        )
    for run in (eager, compiled):
        if not run.accuracy >= ACCURACY:
            found.append(
                f"the {run.name} network reads only {run.accuracy:.2%} of the test digits; "
                f"{ACCURACY:.0%} are required"
            )
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dtype", choices=sorted(LIMITS), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written")
    parser.add_argument("--quick", action="store_true", help="few epochs (overrides --epochs)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.epochs = 8
    if options.epochs < 1 or options.batch_size < 1:
        parser.error("--epochs and --batch-size must be positive")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run both trainings, print, draw, write; 1 where something is not as it must be."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    data = load_data(options.seed, getattr(tracegrad, options.dtype), options.device)
    eager, compiled, step = both_runs(data, options)
    largest = float(differences(eager, compiled)[:COMPARED].max())
    report(eager, compiled, largest, options)

    written = [options.out / "digits_loss.png"]
    draw(eager, compiled, written[0], options)
    for part in ("forward", "backward"):  # of the first trace, that of full batches
        path = options.out / f"digits_{part}.c"
        path.write_text(step.source(part, trace=0), encoding="utf-8")
        written.append(path)
    for path in written:
        print(f"wrote {path}")

    wrong = faults(eager, compiled, largest, options)
    for fault in wrong:
        print(f"digits.py: {fault}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
