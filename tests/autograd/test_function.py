"""`autograd.Function`: contexts, marks, checks of what the user returns; messages are PyTorch's."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad.autograd import Function
from tracegrad.autograd.function import FunctionCtx, once_differentiable


class Cube(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


class NewCube(Function):
    @staticmethod
    def forward(x: Any, scale: float = 1.0) -> Any:
        return x**3 * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.scale = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def vjp(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2 * ctx.scale, None


class Exp(Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        out = tg.exp(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (out,) = ctx.saved_tensors
        return grad * out


def leaf(*values: float) -> Any:
    return tg.tensor(values or (1.0, 2.0), dtype=tg.float64, requires_grad=True)


def make(forward: Any, backward: Any = lambda ctx, *g: g, **more: Any) -> Any:
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward), **more}
    return type("MyF", (Function,), members)


@pytest.mark.parametrize(
    ("fn", "plain"), [(Cube.apply, lambda x: x**3), (NewCube.apply, lambda x: x**3),
                      (lambda x: NewCube.apply(x, scale=2.0), lambda x: 2 * x**3),
                      (Exp.apply, tg.exp)],
)  # fmt: skip
def test_first_and_second_derivatives_are_those_of_the_plain_operations(
    fn: Any, plain: Any
) -> None:
    """Inputs and outputs that were saved keep their history, so backward differentiates again."""
    found = []
    for f in (fn, plain):
        x = leaf()
        (g,) = tg.autograd.grad(f(x).sum(), x, create_graph=True)
        (h,) = tg.autograd.grad((g * g).sum(), x)
        found.append((f(x).tolist(), g.tolist(), h.tolist()))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


def test_the_context_is_the_node() -> None:
    """`grad_fn` is named after the class, and is the `ctx`."""
    x = leaf()
    y = NewCube.apply(x, 2.0)
    assert y.grad_fn.name() == "NewCubeBackward"
    assert repr(y).endswith("grad_fn=<NewCubeBackward>)")
    assert isinstance(y.grad_fn, FunctionCtx)
    assert y.grad_fn.scale == 2.0
    assert y.grad_fn.needs_input_grad == (True, False)
    assert y.grad_fn.saved_tensors[0] is x
    assert len(y.grad_fn.next_functions) == 1


def test_saved_tensors_are_freed_and_checked() -> None:
    x = leaf() * 1
    y = Cube.apply(x).sum()
    y.backward(retain_graph=True)
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()
    x = leaf() * 1
    y = Cube.apply(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation.*version 1; expected"):
        y.sum().backward()


def test_saving_an_output_makes_no_reference_cycle() -> None:
    """Graphs are released without the garbage collector."""
    import gc
    import weakref

    gc.disable()
    try:
        y = Exp.apply(leaf())
        gone = weakref.ref(y.grad_fn)
        del y
        assert gone() is None
    finally:
        gc.enable()


def test_cotangents_that_did_not_come_are_zeros_or_none() -> None:
    """`set_materialize_grads`; outputs that are no tensors pass through, and get None."""
    seen: list[Any] = []
    for materialize in (True, False):

        def forward(ctx: Any, x: Any, materialize: bool = materialize) -> Any:
            ctx.set_materialize_grads(materialize)
            return x * 1, x * 2, "text"

        def backward(ctx: Any, *grads: Any) -> Any:
            seen.append([g if g is None else g.tolist() for g in grads])
            return grads[0]

        a, _, text = make(forward, backward).apply(leaf())
        assert text == "text"
        a.sum().backward()
    assert seen == [[[1, 1], [0, 0], None], [[1, 1], None, None]]


def test_marked_outputs_have_no_gradient() -> None:
    """`mark_non_differentiable`; integer outputs have none either."""

    def forward(ctx: Any, x: Any) -> Any:
        mask = x > 1
        rounded = tg.floor(x)
        ctx.mark_non_differentiable(rounded)
        return x * 2, rounded, mask

    y, rounded, mask = make(forward, lambda ctx, a, b, c: a * 2).apply(x := leaf())
    assert (y.requires_grad, rounded.requires_grad, mask.requires_grad) == (True, False, False)
    y.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_an_input_written_to_takes_the_function_as_its_history() -> None:
    """`mark_dirty`: the same tensor comes back, with a new grad_fn."""

    def forward(ctx: Any, x: Any) -> Any:
        ctx.mark_dirty(x)
        return x.mul_(2)

    double = make(forward, lambda ctx, g: g * 2)
    x = leaf()
    y = x * 3
    z = double.apply(y)
    assert z is y and z.grad_fn.name() == "MyFBackward"
    z.sum().backward()
    assert x.grad.tolist() == [6, 6]
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad has been used"):
        double.apply(leaf())


def test_an_input_returned_as_it_is_is_another_tensor() -> None:
    f = make(lambda ctx, x: x, lambda ctx, g: g * 10)
    x = leaf()
    y = f.apply(x)
    assert y is not x and y.grad_fn.name() == "MyFBackward"
    y.sum().backward()
    assert x.grad.tolist() == [10, 10]


@pytest.mark.parametrize("forward", [lambda ctx, x: x, lambda ctx, x: x.view(-1)])
def test_views_that_a_function_returns_are_not_written_to(forward: Any) -> None:
    y = make(forward).apply(leaf() * 1)
    with pytest.raises(RuntimeError, match="Output 0 of MyFBackward is a view and is being mod"):
        y.mul_(2)


def test_gradients_are_summed_and_cast_to_the_input() -> None:
    """A gradient of broadcast shape is summed; one of another dtype is cast."""
    x = leaf()
    make(lambda ctx, x: x * 2, lambda ctx, g: tg.ones(3, 2)).apply(x).sum().backward()
    assert x.grad.tolist() == [3, 3] and x.grad.dtype is tg.float64


def test_backward_may_write_to_its_argument() -> None:
    """The cotangent of a 0-d output is not shared between backwards."""

    def backward(ctx: Any, g: Any) -> Any:
        g.mul_(5)
        return g

    for _ in range(2):
        x = tg.tensor(1.0, requires_grad=True)
        make(lambda ctx, x: x * 2, backward).apply(x).backward()
        assert x.grad.item() == 5
    y = tg.tensor(1.0, requires_grad=True)
    (y * 2).backward()
    assert y.grad.item() == 2


@pytest.mark.parametrize(
    ("backward", "text"),
    [
        (lambda ctx, g: g, r"function MyFBackward returned an incorrect number of gradients "
                           r"\(expected 2, got 1\)"),
        (lambda ctx, g: (g, g), "returned a gradient different than None at position 2, but the "
                                "corresponding forward input was not a Variable"),
        (lambda ctx, g: (3, None), r"expected Variable or None \(got int\)"),
        (lambda ctx, g: (tg.ones(3), None),
         r"Function MyFBackward returned an invalid gradient at index 0 - got \[3\] but expected "
         r"shape compatible with \[2\]"),
        (lambda ctx, g: (tg.ones(()), None), r"invalid gradient at index 0 - got \[\]"),
    ],
)  # fmt: skip
def test_what_backward_returns_must_fit(backward: Any, text: str) -> None:
    y = make(lambda ctx, x, n: x * n, backward).apply(leaf(), 3)
    with pytest.raises(RuntimeError, match=text):
        y.sum().backward()


def test_trailing_nones_are_allowed() -> None:
    x = leaf()
    make(lambda ctx, x: x * 2, lambda ctx, g: (g, None, None)).apply(x).sum().backward()
    assert x.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("forward", "kind", "text"),
    [
        (lambda ctx, x: (ctx.save_for_backward(3), x * 2)[1], TypeError,
         "save_for_backward can only save variables, but argument 0 is of type int"),
        (lambda ctx, x: (ctx.mark_dirty(3), x * 2)[1], RuntimeError,
         "mark_dirty can only accept variables, but argument"),
        (lambda ctx, x: (ctx.mark_dirty(x), x * 2)[1], RuntimeError,
         "marked as dirty during the forward method were not returned as output"),
        (lambda ctx, x: (ctx.mark_non_differentiable(3), x * 2)[1], RuntimeError,
         "mark_non_differentiable only accepts variable arguments, but got"),
        (lambda ctx, x: (ctx.save_for_forward(3), x * 2)[1], TypeError,
         "save_for_forward expects all arguments to be tensors or None, but got int"),
    ],
)  # fmt: skip
def test_what_the_context_is_told_must_fit(forward: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        make(forward).apply(leaf())


def test_missing_and_doubled_methods() -> None:
    class Nothing(Function):
        pass

    with pytest.raises(NotImplementedError, match="must implement the forward function"):
        Nothing.apply(leaf())
    y = type("F", (Function,), {"forward": staticmethod(lambda ctx, x: x * 2)}).apply(leaf())
    with pytest.raises(NotImplementedError, match="either the backward or vjp method"):
        y.sum().backward()
    both = make(lambda ctx, x: x * 2, vjp=staticmethod(lambda ctx, g: g))
    with pytest.raises(RuntimeError, match="Implementing both 'backward' and 'vjp'"):
        both.apply(leaf()).sum().backward()
    with pytest.warns(DeprecationWarning, match="should not be instantiated"):
        made = Cube()
    with pytest.raises(RuntimeError, match="Legacy autograd function"):
        made(leaf())


def test_once_differentiable_refuses_the_second_derivative() -> None:
    """Also where nothing but the cotangent 1 came in, and among differentiable terms."""

    class Once(Function):
        forward = staticmethod(Cube.forward)
        backward = staticmethod(once_differentiable(Cube.backward))

    x = leaf()
    Once.apply(x).sum().backward()
    assert x.grad.tolist() == [3, 12]
    for y in (Once.apply(x).sum(), Once.apply(x).sum() + (x**2).sum()):
        (g,) = tg.autograd.grad(y, x, create_graph=True)
        with pytest.raises(RuntimeError, match="trying to differentiate twice a function that was"):
            tg.autograd.grad(g.sum(), x)


def test_without_grad_mode_there_is_no_history() -> None:
    with tg.no_grad():
        assert Cube.apply(leaf()).grad_fn is None
    assert Cube.apply(tg.ones(2)).grad_fn is None


def test_inside_a_compiled_function_its_backward_is_called_each_time() -> None:
    """The forward is replayed; one with effects runs as it is, and says why."""
    calls: list[int] = []
    forwards: list[int] = []

    class Backward(Cube):
        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            calls.append(1)
            return Cube.backward(ctx, g)

    class Counted(Cube):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            forwards.append(1)
            return Cube.forward(ctx, x)

    for function in (Cube, NewCube, Backward, Counted):
        f = tg.compile(lambda x, function=function: function.apply(x) * 2, wait=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for n in (1.0, 2.0, 3.0):
                x = leaf(n)
                f(x).sum().backward()
                assert x.grad.tolist() == [6 * n**2]
        told = any("list forwards changed" in str(w.message) for w in caught)
        assert told == (function is Counted)
        assert f.cache_info().hits == (0 if function is Counted else 2)
    assert len(calls) == len(forwards) == 3


def test_around_compiled_functions_it_composes() -> None:
    f = tg.compile(lambda x: tg.sin(x) * 2)
    for _ in range(3):
        x = leaf()
        Cube.apply(f(Cube.apply(x))).sum().backward()
        z = leaf()
        ((tg.sin(z**3) * 2) ** 3).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), z.grad.numpy(), rtol=1e-12)
