"""A walk through tracegrad: from one tensor to a compiled function and the C it became.

Eight short chapters, one function each, every one printing what it shows:

1. tensors and the tape      2. gradients             3. training a small model
4. switching the tape off    5. writing in place      6. where the time goes
7. Jacobians                 8. compiling

The program writes a picture (a damped wave with its slope, and the losses of chapter 3), a trace
for https://ui.perfetto.dev (chapter 6) and the generated C (chapter 8).

Run it:  python examples/fundamentals.py --out out        (start reading at `main`)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import tracegrad as tg
from tracegrad import nn, optim
from tracegrad.autograd import functional
from tracegrad.autograd.profiler import profile, record_function


def chapter(number: int, title: str, text: str) -> None:
    print(f"\n{number}. {title}\n{'-' * (len(title) + 3)}\n{text}\n")


def damped(t: tg.Tensor) -> tg.Tensor:
    """A wave that dies away: exp(-t/3) cos(3 t)."""
    return tg.exp(-t / 3) * tg.cos(3 * t)


def tensors_and_the_tape() -> tg.Tensor:
    chapter(1, "Tensors and the tape",
            "Computing with a tensor that requires grad notes each operation on a tape. A result\n"
            "knows the last operation (grad_fn), which knows those before it.")  # fmt: skip
    t = tg.linspace(0.0, 6.0, steps=7, requires_grad=True)
    y = damped(t)
    print("t =", t)
    print("y =", y)
    node, depth = y.grad_fn, 0
    while node is not None:
        print("  " * depth + node.name())
        node = node.next_functions[0][0] if node.next_functions else None
        depth += 1
    return t


def gradients(t: tg.Tensor) -> tg.Tensor:
    chapter(2, "Gradients",
            "backward() walks the tape from one number to the leaves and adds to their .grad.\n"
            "Here the slope of the wave, beside the one found with pencil and paper.")  # fmt: skip
    damped(t).sum().backward()
    x = t.detach()
    by_hand = -tg.exp(-x / 3) * (tg.cos(3 * x) / 3 + 3 * tg.sin(3 * x))
    print("backward():", t.grad)
    print("by hand:   ", by_hand)
    print("A second backward() adds to .grad, so the sum doubles:")
    damped(t).sum().backward()
    print("            ", t.grad)
    t.grad = None
    return by_hand


class Net(nn.Module):
    """One hidden layer between a time and a height."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.inner = nn.Linear(1, width)
        self.outer = nn.Linear(width, 1)

    def forward(self, t: tg.Tensor) -> tg.Tensor:
        """Heights, shape (n, 1), at times of that shape."""
        return self.outer(tg.tanh(self.inner(t)))


def training(steps: int) -> list[float]:
    chapter(3, "Training a small model",
            "A module keeps its weights; an optimizer moves them against\ntheir gradients.")  # fmt: skip
    t = tg.linspace(0.0, 3.0, steps=64).reshape(64, 1)
    ideal = damped(t)
    model = Net()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = (model(t) - ideal).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % max(1, steps // 4) == 0:
            print(f"step {step:4d}: mean squared error {losses[-1]:.5f}")
    print(f"at the end: mean squared error {losses[-1]:.5f}")
    return losses


def without_the_tape() -> None:
    chapter(4, "Switching the tape off",
            "Inside no_grad() nothing is noted; detach() gives the same memory without its tape;\n"
            "setting requires_grad = False on a leaf stops noting from there on.")  # fmt: skip
    weight = tg.ones(2, requires_grad=True)
    with tg.no_grad():
        print("inside no_grad(): ", weight * 2)
    print("outside:          ", weight * 2)
    print("detached:         ", (weight * 2).detach())
    weight.requires_grad = False
    print("flag taken away:  ", weight * 2)


def in_place() -> list[str]:
    chapter(5, "Writing in place",
            "An operation whose name ends in _ overwrites its tensor. Where that would lose what\n"
            "a gradient needs, tracegrad refuses, and says which value was overwritten.")  # fmt: skip
    leaf = tg.ones(3, requires_grad=True)
    wave = leaf.sin()
    result = wave.exp()  # the gradient of exp needs its result
    result.mul_(2)
    refusals = []
    for attempt in (leaf.sin_, result.sum().backward):
        try:
            attempt()
        except RuntimeError as error:
            refusals.append(str(error))
            print(f"RuntimeError: {error}\n")
    return refusals


def where_the_time_goes(trace: Path) -> str:
    chapter(6, "Where the time goes",
            "Inside profile() every operation is timed; record_function()\nnames a part.")  # fmt: skip
    t = tg.linspace(0.0, 6.0, steps=10_000, requires_grad=True)
    with profile() as prof:
        for _ in range(20):
            with record_function("wave"):
                y = damped(t)
            y.sum().backward()
    table = prof.key_averages().table(sort_by="self_cpu_time_total", row_limit=6)
    print(table)
    prof.export_chrome_trace(trace)
    return table


def jacobians() -> tuple[tg.Tensor, tg.Tensor]:
    chapter(7, "Jacobians",
            "A function with several results has a row of slopes for each. A vector-Jacobian\n"
            "product is what backward() computes, without building the matrix.")  # fmt: skip

    def polar(p: tg.Tensor) -> tg.Tensor:
        return tg.stack([p[0] * tg.cos(p[1]), p[0] * tg.sin(p[1])])

    point = tg.tensor([2.0, tg.pi / 6])
    matrix = functional.jacobian(polar, point)
    _, product = functional.vjp(polar, point, v=tg.tensor([1.0, 0.0]))
    print("polar coordinates -> plane, at radius 2 and 30 degrees:\n", matrix)
    print("times (1, 0) from the left, its first row:\n", product)
    return matrix, product


def compiling(source: Path) -> tg.CompiledFunction:
    chapter(8, "Compiling",
            "compile() records one run of a function and writes it out as C; later calls with\n"
            "arguments of the same kind run that. Gradients work as before. By default that is\n"
            "done in the background; with wait=True the first call waits for it.")  # fmt: skip

    @tg.compile(wait=True)
    def energy(t: tg.Tensor) -> tg.Tensor:
        return damped(t).pow(2).sum()

    t = tg.linspace(0.0, 6.0, steps=1000, requires_grad=True)
    for _ in range(3):
        t.grad = None
        energy(t).backward()
    compiled = t.grad.clone()
    t.grad = None
    damped(t).pow(2).sum().backward()
    print(energy.explain())
    print("largest difference to the eager gradient:", (compiled - t.grad).abs().max().item())
    print("\nWhat was recorded:\n")
    print(energy.graph())
    print("\nWhat it became:\n")
    print(energy.source())
    source.write_text(energy.source(), encoding="utf-8")
    return energy


def draw(losses: list[float], path: Path) -> None:
    """The wave with its slope on the left, the losses of the training on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    t = tg.linspace(0.0, 6.0, steps=300, requires_grad=True)
    y = damped(t)
    y.sum().backward()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(t.detach(), y.detach(), label="exp(-t/3) cos(3t)")
    left.plot(t.detach(), t.grad, label="its slope, from backward()", linewidth=1)
    left.set(xlabel="t", title="A function and its gradient")
    left.legend()
    right.semilogy(losses)
    right.set(xlabel="step", ylabel="mean squared error", title="Training")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Print the chapters in order and write the three files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what is written")
    parser.add_argument("--steps", type=int, default=400, help="steps of the training")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("--steps must be positive")
    options.out.mkdir(parents=True, exist_ok=True)
    tg.manual_seed(0)
    picture, trace, source = (
        options.out / f"fundamentals{end}" for end in (".png", "_trace.json", ".c")
    )
    gradients(tensors_and_the_tape())
    losses = training(options.steps)
    without_the_tape()
    in_place()
    where_the_time_goes(trace)
    jacobians()
    compiling(source)
    draw(losses, picture)
    print("\nwrote", picture, trace, source, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
