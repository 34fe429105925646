"""func.vmap: the loop over the examples is the specification.

Mirrors torch.func.vmap (torch 2.13): dimensions in and out, trees, transforms inside and outside,
writes in place, random numbers, `Function.vmap` and `generate_vmap_rule`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as torch
from tracegrad import func
from tracegrad.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

W = torch.tensor([[1.0, 2.0], [-0.5, 0.3]], dtype=torch.float64)


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).uniform(0.2, 1.5, shape)
    return torch.tensor(values.tolist(), dtype=torch.float64)


def loop(f: Callable[..., Any], *xs: torch.Tensor) -> torch.Tensor:
    return torch.stack([f(*row) for row in zip(*xs)])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(),
                               rtol=1e-12, atol=1e-12)  # fmt: skip


def close_float32(found: torch.Tensor, expected: torch.Tensor) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(),
                               rtol=1e-5, atol=1e-6)  # fmt: skip


def wavy(a: torch.Tensor) -> torch.Tensor:
    return (torch.sin(a) @ W * torch.exp(a)).sum()


def curve(a: torch.Tensor) -> torch.Tensor:
    return torch.tanh(W @ a) * a


def varied(a: torch.Tensor) -> torch.Tensor:
    """Movement, joining, reductions, choices, indexing and products in one function."""
    b = torch.stack([a, a.flip(0)])
    c = torch.cat([b, b.t()], 0).reshape(-1)[::3]
    d = torch.where(c > 0.6, c, -c * c)
    pairs = (a.unsqueeze(0) - a.unsqueeze(1)).abs().sum()
    return d.max() + d.std() + torch.logsumexp(d, 0) + pairs + a.prod() + torch.softmax(a, 0)[0]


def rewritten(a: torch.Tensor) -> torch.Tensor:
    """Writes in place to a tensor, to views of it, and from one view to another."""
    b = a.clone()
    b[0] = b[1] * 2
    b.mul_(3)
    b[1:] += a[:1]
    row = torch.zeros_like(a)
    row[1] = b[0]
    row[:1].copy_(a[1:])
    return b * row


FUNCTIONS = [wavy, curve, varied, rewritten]


@pytest.mark.parametrize("f", FUNCTIONS)
def test_vmap_is_the_loop(f: Callable[..., Any]) -> None:
    x = batch(3, 2)
    close(vmap(f)(x), loop(f, x))
    close(vmap(f, chunk_size=2)(x), loop(f, x))


@pytest.mark.parametrize("f", FUNCTIONS)
def test_derivatives_inside_vmap_are_the_loop(f: Callable[..., Any]) -> None:
    x = batch(3, 2)

    def total(a: torch.Tensor) -> torch.Tensor:
        return (f(a) ** 2).sum()

    for transform in (grad, jacrev, jacfwd, hessian):
        close(vmap(transform(total))(x), loop(transform(total), x))
    close(vmap(lambda a: jvp(f, (a,), (a,))[1])(x), loop(lambda a: jvp(f, (a,), (a,))[1], x))


@pytest.mark.parametrize("f", FUNCTIONS)
def test_vmap_inside_derivatives_is_the_loop(f: Callable[..., Any]) -> None:
    x = batch(3, 2)

    def total(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda a: (run(a) ** 2).sum()

    whole, apart = total(vmap(f)), total(lambda a: loop(f, a))
    for transform in (grad, jacrev, jacfwd, hessian):
        close(transform(whole)(x), transform(apart)(x))
    leaf = x.clone().requires_grad_()
    whole(leaf).backward()
    close(leaf.grad, grad(apart)(x))


def test_derivatives_through_derivatives_inside_vmap() -> None:
    x, w = batch(3, 2), W.clone().requires_grad_()

    def slopes(a: torch.Tensor) -> torch.Tensor:
        return grad(lambda b: (torch.sin(b) @ w).prod())(a)

    for f in (lambda a: vmap(slopes)(a).pow(2).sum(), lambda a: loop(slopes, a).pow(2).sum()):
        (by_w,) = torch.autograd.grad(f(x), w)
        close(by_w, torch.autograd.grad(loop(slopes, x).pow(2).sum(), w)[0])
        close(grad(f)(x), grad(lambda a: loop(slopes, a).pow(2).sum())(x))


def test_nested_vmap_over_different_dimensions() -> None:
    x, y = batch(3, 2), batch(4, 2, seed=1)
    close(vmap(lambda a: vmap(lambda b: a @ b)(y))(x), x @ y.t())
    close(vmap(vmap(lambda a, b: a * b, in_dims=(None, 0)), in_dims=(0, None))(x, y),
          x[:, None] * y[None])  # fmt: skip
    cube = batch(2, 3, 4)
    close(vmap(vmap(torch.sum, in_dims=1), in_dims=0)(cube), cube.sum(1))


def test_dimensions_in_and_out() -> None:
    x = batch(2, 3, 4)
    for dim in (-3, -2, -1, 0, 1, 2):
        close(vmap(lambda a: a * 2, in_dims=dim, out_dims=dim)(x), x * 2)
    close(vmap(lambda a: a.sum(), in_dims=(1,))(x), x.sum((0, 2)))
    first, second = vmap(lambda a: (a, a.sum()), in_dims=2, out_dims=(1, 0))(x)
    close(first, x.permute(0, 2, 1))
    close(second, x.sum((0, 1)))


def test_trees_of_arguments_and_results() -> None:
    x, y = batch(3, 2), batch(2, 3)

    def f(tree: dict[str, Any], scale: float, pair: tuple[Any, Any]) -> dict[str, Any]:
        return {"sum": tree["x"] + pair[0], "pair": [tree["x"] * scale, pair[1]]}

    found = vmap(f, in_dims=({"x": 0}, None, (1, None)))({"x": x}, 3.0, (y, W))
    close(found["sum"], x + y.t())
    close(found["pair"][0], x * 3)
    close(found["pair"][1], W.expand(3, 2, 2))


def test_results_that_are_the_same_for_all_examples() -> None:
    x = batch(3, 2)
    close(vmap(lambda a: W)(x), W.expand(3, 2, 2))
    same, number = vmap(lambda a: (W, 7), out_dims=None)(x)
    assert same is W and number == 7


def test_keyword_arguments_are_shared() -> None:
    x = batch(3, 2)
    close(vmap(lambda a, w: w @ a)(x, w=W), x @ W.t())


def test_no_examples_at_all() -> None:
    empty = torch.zeros(0, 2)
    assert vmap(lambda a: (a * 2).sum())(empty).shape == (0,)
    assert vmap(grad(lambda a: (a * 2).sum()))(empty).shape == (0, 2)


def test_an_index_that_differs_between_the_examples() -> None:
    x, i = batch(3, 4), torch.tensor([2, 0, -1])
    close(vmap(lambda a, k: a[k])(x, i), loop(lambda a, k: a[int(k)], x, i))
    with pytest.raises(IndexError, match="index 4 is out of bounds"):
        vmap(lambda a, k: a[k])(x, torch.tensor([0, 4, 1]))


def test_the_function_runs_once_and_prints_all_examples(capsys: Any) -> None:
    runs: list[int] = []

    def f(a: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        print(a)
        return a

    vmap(f)(torch.tensor([1.0, 2.0]))
    assert runs == [1]
    assert capsys.readouterr().out == (
        "BatchedTensor(lvl=1, bdim=0, value=\n    tensor([1., 2.])\n)\n"
    )


def test_values_that_are_the_same_for_all_may_be_read() -> None:
    x, flag = batch(3, 2), torch.tensor(True)
    close(vmap(lambda a: a * 2 if flag else a)(x), x * 2)
    close(vmap(lambda a: a * W.sum().item())(x), x * W.sum())


# ---- writes in place ----------------------------------------------------------------------------


def test_a_write_to_the_argument_writes_the_batch() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    vmap(lambda a: a.mul_(2), in_dims=1)(x)
    assert x.tolist() == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]


def test_a_local_tensor_becomes_different_for_each_example() -> None:
    """PyTorch does so for `zeros_like(a)` only; here for whatever was made inside."""
    x = batch(3, 2)

    def f(a: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(2, 2, dtype=torch.float64)
        early = kept[0]
        kept[0] = a
        return kept + early

    close(vmap(f)(x), loop(f, x))


def test_a_tensor_from_outside_cannot_be_written_to_for_each_example() -> None:
    outside = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"vmap: inplace arithmetic\(self, \*extra_args\)"):
        vmap(lambda a: outside.add_(a))(torch.ones(3, 2))
    with pytest.raises(RuntimeError, match=r"vmap: inplace arithmetic\(self, \*extra_args\)"):
        vmap(lambda a: outside[:1].copy_(a[:1]))(torch.ones(3, 2))


def test_a_counter_outside_counts_once() -> None:
    counter = torch.zeros(())

    def f(a: torch.Tensor) -> torch.Tensor:
        counter.add_(1)
        return a * counter

    assert vmap(f)(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]
    assert counter.item() == 1.0


# ---- random numbers -----------------------------------------------------------------------------


def test_randomness() -> None:
    x = torch.zeros(3, 2)
    different = vmap(lambda a: a + torch.rand(2), randomness="different")(x)
    assert len({tuple(row) for row in different.tolist()}) == 3
    same = vmap(lambda a: a + torch.randn(2), randomness="same")(x)
    assert len({tuple(row) for row in same.tolist()}) == 1
    with pytest.raises(RuntimeError, match="vmap: called random operation while in randomness"):
        vmap(lambda a: a + torch.rand(2))(x)
    torch.manual_seed(0)
    first = vmap(lambda a: a + torch.rand(2), randomness="different")(x)
    torch.manual_seed(0)
    assert torch.equal(vmap(lambda a: a + torch.rand(2), randomness="different")(x), first)


def test_bernoulli_of_probabilities_that_differ() -> None:
    p = torch.tensor([[0.0] * 8, [1.0] * 8, [0.5] * 8])
    for randomness in ("different", "same"):
        found = vmap(lambda a: torch.bernoulli(a), randomness=randomness)(p)
        assert found[:2].tolist() == [[0.0] * 8, [1.0] * 8]
    half = torch.full((3, 64), 0.5)
    same = vmap(lambda a: torch.bernoulli(a), randomness="same")(half)
    assert len({tuple(row) for row in same.tolist()}) == 1


# ---- tensors that escape ------------------------------------------------------------------------


def test_a_tensor_that_escapes_says_so() -> None:
    """It has the values of one example: to use them would be silently wrong."""
    kept: list[torch.Tensor] = []

    def f(a: torch.Tensor) -> torch.Tensor:
        kept.append(a * 2)
        return a

    assert vmap(f)(torch.ones(3)).tolist() == [1.0, 1.0, 1.0]
    for use in (lambda x: x + 1, lambda x: x.tolist(), lambda x: torch.ones(1) * x):
        with pytest.raises(RuntimeError, match="has escaped from inside a function being vmapped"):
            use(kept[0])
    assert repr(kept[0]) == "<a tensor that escaped from vmap>"


# ---- models -------------------------------------------------------------------------------------


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))


def test_gradients_per_sample_and_ensembles() -> None:
    net, x, t = model(), torch.rand(4, 2), torch.rand(4, 1)
    weights = dict(net.named_parameters())

    def loss(weights: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((functional_call(net, weights, (a,)) - b) ** 2).mean()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, t)
    for k in range(4):
        one = grad(loss)(weights, x[k], t[k])
        for name, value in one.items():
            close_float32(found[name][k], value)
    several = {n: torch.stack([p.detach(), p.detach() * 2]) for n, p in weights.items()}
    both = vmap(lambda w: functional_call(net, w, (x,)))(several)
    doubled = functional_call(net, {n: p.detach() * 2 for n, p in weights.items()}, (x,))
    close_float32(both[1], doubled)


def test_vjp_and_linearize_are_batched_over_their_vectors() -> None:
    x = batch(2)
    eye = torch.eye(2, dtype=torch.float64)
    matrix = jacrev(curve, chunk_size=1)(x)
    close(vmap(vjp(curve, x)[1])(eye)[0], matrix)
    close(vmap(func.linearize(curve, x)[1])(eye), matrix.t())


@pytest.mark.parametrize("create_graph", [False, True])
def test_batched_cotangents(create_graph: bool) -> None:
    x = batch(3).requires_grad_()
    y = x**3
    seeds = torch.stack([torch.eye(3, dtype=torch.float64)[k] for k in (2, 0)])
    (found,) = torch.autograd.grad(y, x, seeds, is_grads_batched=True, create_graph=create_graph)
    close(found, seeds * 3 * x**2)
    if create_graph:
        close(torch.autograd.grad(found.sum(), x)[0], seeds.sum(0) * 6 * x)


def test_vmap_inside_a_compiled_function_is_captured() -> None:
    f = torch.compile(lambda x: vmap(lambda a: torch.sin(a) @ W)(x).sum())
    x = batch(3, 2).requires_grad_()
    want = (torch.sin(x) @ W).sum()
    for _ in range(3):
        close(f(x), want)
        (slope,) = torch.autograd.grad(f(x), x)
        close(slope, torch.cos(x) * W.sum(1))
    assert f.cache_info().traces == 1, f.explain()


def test_a_compiled_function_inside_vmap() -> None:
    f = torch.compile(lambda a: torch.sin(a) * a)
    x = batch(3, 2)
    f(x[0]), f(x[0])
    close(vmap(f)(x), torch.sin(x) * x)
    f(x[0].clone().requires_grad_())
    leaf = x[0].clone().requires_grad_()
    y = f(leaf)
    (rows,) = torch.autograd.grad(y, leaf, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
    assert y.grad_fn.name() == "CompiledBackward0"
    close(rows, torch.eye(2, dtype=torch.float64) * (torch.cos(x[0]) * x[0] + torch.sin(x[0])))
