"""What `gradcheck` compares: Jacobians by central differences and by backwards.

A Jacobian is an array (elements of the input, elements of the output), as PyTorch prints it.
Start reading at `Checked`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracegrad.runtime.cuda.array import host
from tracegrad.tracer import grad_mode
from tracegrad.tracer.capture_hook import recording
from tracegrad.tracer.engine import grad
from tracegrad.tracer.forward import Tangents
from tracegrad.tracer.tensor import Tensor, literal, wrap


class GradcheckError(RuntimeError):
    """A gradient is not what differences say; raised by `gradcheck` and `gradgradcheck`.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(1, dtype=tg.float64, requires_grad=True)
        >>> tg.autograd.gradcheck(lambda x: x * x.detach(), (x,))
        Traceback (most recent call last):
        tracegrad.autograd.gradcheck_parts.GradcheckError: Jacobian mismatch for output 0 ...
    """


def _floating(result: Any) -> list[Tensor]:
    if not isinstance(result, Tensor | tuple | list):
        raise TypeError(f"gradcheck: func must return tensors, but it returned {result!r}")
    outputs = [result] if isinstance(result, Tensor) else list(result)
    for i, x in enumerate(outputs):
        if x is not None and not isinstance(x, Tensor):
            raise TypeError(
                f"gradcheck: func must return tensors, but its output {i} is a {type(x).__name__}"
            )
    return [x for x in outputs if x is not None and x.dtype.is_floating_point]


def outputs_of(func: Callable[..., Any], inputs: Sequence[Any]) -> list[Tensor]:
    """The outputs that require grad."""
    with grad_mode.enable_grad():
        return [x for x in _floating(func(*inputs)) if x.requires_grad]


class Checked:
    """A function at a point.

    Attributes:
        outputs: those that require grad, from one run.
        wanted: positions of the inputs that require grad; `tensors` are these.
    """

    def __init__(
        self, func: Callable[..., Any], inputs: Sequence[Any], outputs: list[Tensor], eps: float
    ) -> None:
        self.func, self.inputs, self.outputs, self.eps = func, tuple(inputs), outputs, eps
        self.wanted = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad]
        self.tensors: list[Tensor] = [inputs[i] for i in self.wanted]

    def evaluate(self, position: int, value: np.ndarray, everything: bool) -> list[np.ndarray]:
        """The outputs, flat, with another value for one input."""
        changed = list(self.inputs)
        changed[position] = literal(value, self.inputs[position]).requires_grad_()
        with grad_mode.enable_grad():
            results = _floating(self.func(*changed))
        chosen = results if everything else [r for r in results if r.requires_grad]
        if not everything and [r.shape for r in chosen] != [o.shape for o in self.outputs]:
            raise AssertionError(
                "Expected `func` to return outputs with the same shape when inputs are perturbed "
                f"by {self.eps}, but got: shapes {[o.shape for o in self.outputs]} and "
                f"{[r.shape for r in chosen]}."
            )
        return [np.array(host(r._array), np.float64).reshape(-1) for r in chosen]

    def difference(
        self, position: int, step: np.ndarray, everything: bool = False
    ) -> list[np.ndarray]:
        """The derivative of each output along `step`, by a central difference."""
        here = host(self.inputs[position]._array)
        moved = np.asarray(self.eps * step, here.dtype)
        above = self.evaluate(position, here + moved, everything)
        below = self.evaluate(position, here - moved, everything)
        return [(a - b) / (2 * self.eps) for a, b in zip(above, below, strict=True)]

    def gradients(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], **options: Any
    ) -> tuple[Tensor | None, ...]:
        """Gradients with respect to the checked inputs; None where there is none."""
        return grad(
            outputs, self.tensors, cotangents, retain_graph=True, allow_unused=True, **options
        )

    def pushed(self, k: int, along: Any) -> list[np.ndarray]:
        """The tangent of each output, flat, where checked input number `k` varies along `along`."""
        return [
            np.array(host(t._array), np.float64).reshape(-1)
            for t in self.tangents(k, literal(along, self.tensors[k]))
        ]

    def tangents(self, k: int, along: Tensor) -> list[Tensor]:
        """The tangent of each output, in forward mode."""
        forward = Tangents()
        given = list(self.inputs)
        with grad_mode.enable_grad(), recording(forward):
            given[self.wanted[k]] = forward.dual(self.tensors[k], along)
            outputs = [x for x in _floating(self.func(*given)) if x.requires_grad]
        found = [forward.companion(x) for x in outputs]
        return [
            wrap(np.zeros_like(x._array)) if t is None else t.detach()
            for x, t in zip(outputs, found, strict=True)
        ]


def forward(checked: Checked, k: int) -> list[np.ndarray]:
    """The Jacobian of each output with respect to checked input number `k`, by forward mode."""
    x = checked.tensors[k]
    rows = []
    for i in range(x._array.size):
        step = np.zeros(x._array.size, x.dtype.numpy)
        step[i] = 1
        rows.append(checked.pushed(k, step.reshape(x._array.shape)))
    return [np.stack(row) for row in zip(*rows, strict=True)] if rows else [
        np.zeros((0, o._array.size)) for o in checked.outputs
    ]  # fmt: skip


def check_batched_forward(checked: Checked) -> None:
    """Compare forward mode along a batch of directions with forward mode along each."""
    from tracegrad.func.batching import vmap

    rng = np.random.default_rng(0)
    for k, x in enumerate(checked.tensors):
        shape = (2, *x._array.shape)
        batch = literal(np.asarray(rng.standard_normal(shape), x.dtype.numpy), x)
        together = vmap(lambda along, k=k: tuple(checked.tangents(k, along)))(batch)
        apart = [checked.tangents(k, batch[i]) for i in range(2)]
        for o, got in enumerate(together):
            want = np.stack([host(row[o]._array) for row in apart])
            if not np.allclose(host(got._array), want):
                raise GradcheckError(
                    f"For output {o} and input {checked.wanted[k]}:\n\ngradcheck or gradgradcheck "
                    "failed while testing batched gradient computation with forward-mode AD.\n\n"
                    f"Got:\n{got}\n\nExpected:\n{want}"
                )


def numerical(checked: Checked, everything: bool = False) -> list[list[np.ndarray]]:
    """For each checked input, the Jacobian of each output by central differences."""
    found = []
    for position, x in zip(checked.wanted, checked.tensors, strict=True):
        shape = x._array.shape
        rows = []
        for k in range(x._array.size):
            step = np.zeros(x._array.size)
            step[k] = 1.0
            rows.append(checked.difference(position, step.reshape(shape), everything))
        count = len(rows[0]) if rows else 0
        found.append([np.stack([row[o] for row in rows]) for o in range(count)])
    return found


def analytical(checked: Checked, number: int) -> list[np.ndarray]:
    """For each checked input, the Jacobian of one output by backwards."""
    output = checked.outputs[number]
    shape, size = output._array.shape, output._array.size
    found = [np.zeros((x._array.size, size)) for x in checked.tensors]
    for k in range(size):
        seed = np.zeros(size, output.dtype.numpy)
        seed[k] = 1
        gradients = checked.gradients([output], [literal(seed.reshape(shape), output)])
        for jacobian, g in zip(found, gradients, strict=True):
            if g is not None:
                jacobian[:, k] = host(g._array).reshape(-1)
    return found


def check_batched(checked: Checked) -> None:
    """Compare one backward of a batch of cotangents with one backward each."""
    rng = np.random.default_rng(0)
    for o, output in enumerate(checked.outputs):
        batch = np.asarray(rng.standard_normal((2, *output._array.shape)), output.dtype.numpy)
        together = checked.gradients([output], [literal(batch, output)], is_grads_batched=True)
        apart = [checked.gradients([output], [literal(row.copy(), output)]) for row in batch]
        for i, got in enumerate(together):
            rows = [a[i] for a in apart]
            want = (
                None
                if rows[0] is None
                else np.stack([host(r._array) for r in rows if r is not None])
            )
            same = (
                got is None
                if want is None
                else got is not None and np.allclose(host(got._array), want)
            )
            if not same:
                raise GradcheckError(
                    f"For output {o} and input {checked.wanted[i]}:\n\ngradcheck or gradgradcheck "
                    f"failed while testing batched gradient computation.\n\nGot:\n{got}\n\n"
                    f"Expected:\n{want}"
                )


def check_undefined(checked: Checked) -> None:
    """A cotangent that does not come counts as zero."""
    if len(checked.outputs) < 2:
        return
    for k in range(len(checked.outputs)):
        others = [o for i, o in enumerate(checked.outputs) if i != k]
        ones = [wrap(np.ones_like(o._array)) for o in others]
        zero = wrap(np.zeros_like(checked.outputs[k]._array))
        try:
            without = checked.gradients(others, ones)
        except Exception as error:
            raise GradcheckError(
                "Expected backward function to handle undefined output grads: with no gradient "
                f"for output {k} it raised {type(error).__name__}: {error}"
            ) from error
        whole = checked.gradients([*others, checked.outputs[k]], [*ones, zero])
        for a, b in zip(without, whole, strict=True):
            left = 0.0 if a is None else host(a._array)
            right = 0.0 if b is None else host(b._array)
            if not np.allclose(left, right, equal_nan=True):
                raise GradcheckError(
                    "Expected backward function to handle undefined output grads: with no gradient "
                    f"for output {k} it gives other values than with zeros"
                )
