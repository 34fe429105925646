"""A walk through tracegrad: from one tensor to a compiled function and the C it became.

Nine short chapters, one function each, every one printing what it shows:

1. tensors and the tape      2. gradients               3. a loop that the data decides
4. training a small model    5. switching the tape off  6. writing in place
7. where the time goes       8. Jacobians and Hessians  9. compiling

The program writes a picture (a damped wave with its slope, and the losses of chapter 4), a trace
for https://ui.perfetto.dev (chapter 7) and the generated C (chapter 9).

Run it:  python examples/fundamentals.py --out out        (start reading at `main`)
"""

from __future__ import annotations

import argparse
import sys
import warnings
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


def tree(node: tg.autograd.graph.Node, depth: int = 0) -> list[str]:
    """Names of a node and of those before it, each branch indented below the one it leads to."""
    lines = ["  " * depth + node.name()]
    for earlier, _ in node.next_functions:
        if earlier is not None:  # a plain number has no node
            lines += tree(earlier, depth + 1)
    return lines


def tensors_and_the_tape() -> tg.Tensor:
    chapter(1, "Tensors and the tape",
            "Computing with a tensor that requires grad notes each operation on a tape. A result\n"
            "knows the last operation (grad_fn), which knows those before it, down to the tensor\n"
            "that all began with: there AccumulateGrad will leave the gradient.")  # fmt: skip
    t = tg.linspace(0.0, 6.0, steps=7, requires_grad=True)
    y = damped(t)
    print("t =", t)
    print("y =", y)
    print("\n".join(tree(y.grad_fn)))
    quarters = tg.linspace(0.0, 2 * tg.pi, steps=5)
    print("\nNumbers are float32 unless told otherwise: about seven digits. So the sine of pi is")
    print("not 0, it is what pi has lost by rounding; that is arithmetic, not a fault.")
    print("sin at quarter turns:  ", tg.sin(quarters))
    print(f"pi minus its float32:   {tg.pi - quarters[2].item():.4e}")
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
    print("Results on the way keep no gradient, unless they are asked to before:")
    swing = tg.cos(3 * t)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        print("swing.grad: ", swing.grad)
    print("UserWarning:", *(str(w.message).split(". ")[0] for w in caught))
    swing.retain_grad()
    (tg.exp(-t / 3) * swing).sum().backward()
    print("retain_grad:", swing.grad)
    t.grad = None
    return by_hand


def a_loop_that_the_data_decides() -> tuple[tg.Tensor, str]:
    chapter(3, "A loop that the data decides",
            "The tape holds what was computed, not the program: a while loop leaves one node for\n"
            "each of its rounds. A result of several numbers has no single slope, so backward()\n"
            "wants a weight for each, and gives the gradient of the weighted sum.")  # fmt: skip
    x = tg.tensor([3.0, -20.0, 0.5], requires_grad=True)
    y = x
    while y.abs().max() > 1:
        y = y / 2
    print("y =", y)
    print("\n".join(tree(y.grad_fn)))
    refusal = ""
    try:
        y.backward()
    except RuntimeError as error:
        refusal = str(error)
        print(f"y.backward(): RuntimeError: {refusal}")
    y.backward(tg.tensor([1.0, 10.0, 100.0]))
    print("y.backward((1, 10, 100)):", x.grad)
    return x.grad, refusal


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
    chapter(4, "Training a small model",
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
    chapter(5, "Switching the tape off",
            "Inside no_grad() nothing is noted, nor in a function that it decorates; enable_grad()\n"
            "takes notes again. detach() gives the same memory without its tape; setting\n"
            "requires_grad = False on a leaf stops noting from there on.")  # fmt: skip

    @tg.no_grad()
    def untracked(x: tg.Tensor) -> tg.Tensor:
        return x * 2

    weight = tg.ones(2, requires_grad=True)
    with tg.no_grad():
        print("inside no_grad(): ", weight * 2)
    print("outside:          ", weight * 2)
    print("detached:         ", (weight * 2).detach())
    print("decorated:        ", untracked(weight))
    with tg.no_grad(), tg.enable_grad():
        print("on again inside:  ", weight * 2)
    weight.requires_grad = False
    print("flag taken away:  ", weight * 2)


def in_place() -> list[str]:
    chapter(6, "Writing in place",
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
    chapter(7, "Where the time goes",
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


def jacobians_and_hessians() -> dict[str, tg.Tensor]:
    chapter(8, "Jacobians and Hessians",
            "A function with several results has a row of slopes for each. backward() computes a\n"
            "vector times that matrix, jvp() the matrix times a vector, neither builds it. The\n"
            "slopes of the slopes of one number are its Hessian.")  # fmt: skip

    def plane(p: tg.Tensor) -> tg.Tensor:
        return tg.stack([p[0] * tg.cos(p[1]), p[0] * tg.sin(p[1])])

    def square(p: tg.Tensor) -> tg.Tensor:
        return plane(p)[0] ** 2

    point, first = tg.tensor([2.0, tg.pi / 6]), tg.tensor([1.0, 0.0])
    shown = {
        "polar coordinates -> plane, at radius 2 and 30 degrees": functional.jacobian(plane, point),
        "times (1, 0) from the left, its first row": functional.vjp(plane, point, v=first)[1],
        "times (1, 0) from the right, its first column": functional.jvp(plane, point, v=first)[1],
        "Hessian of the square of the first coordinate": functional.hessian(square, point),
    }
    for words, value in shown.items():
        print(f"{words}:\n{value}")
    return shown


def compiling(source: Path) -> tg.CompiledFunction:
    chapter(9, "Compiling",
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
    a_loop_that_the_data_decides()
    losses = training(options.steps)
    without_the_tape()
    in_place()
    where_the_time_goes(trace)
    jacobians_and_hessians()
    compiling(source)
    draw(losses, picture)
    print("\nwrote", picture, trace, source, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
