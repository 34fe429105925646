"""Results that are views: memory, version counters, `_base`, identity and history as in eager mode.

Each program is run compiled and as it is; then results are looked at, written to, and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tracegrad as tg
from tracegrad import nn

LAYER = nn.Linear(4, 2)
TABLE = {"a": tg.arange(12.0).reshape(3, 4)}


def row(x: Any) -> Any:
    return x[0]


def rows(x: Any) -> Any:
    return x[1:], x[:2]


def transposed(x: Any) -> Any:
    return x.t()


def moved(x: Any) -> Any:
    return x.permute(1, 0), x.transpose(0, 1), x.T, x.mT


def reshaped(x: Any) -> Any:
    return x.reshape(-1), x.view(2, 6), x.flatten(), x.unsqueeze(0), x.squeeze()


def expanded(x: Any) -> Any:
    return x[0].expand(5, 4), x[:, None].expand(3, 2, 4)


def itself_and_a_view(x: Any) -> Any:
    return x, x[0], x * 2


def twice(x: Any) -> Any:
    v = x[1]
    return v, v, x


def view_of_a_view(x: Any) -> Any:
    return x[1:].t()[::2].reshape(-1)[:3] * 1, x[1:].t()[::2]


def detached(x: Any) -> Any:
    return x.detach(), x[0]


def of_a_module(x: Any) -> Any:
    return LAYER.weight.t(), LAYER.weight[0], x + 1


def of_a_table(x: Any) -> Any:
    return TABLE["a"][1:], (x * 2).sum()


def made_and_a_view(x: Any) -> Any:
    y = x * 2
    return y, y[0]


def two_views_of_what_is_not_returned(x: Any) -> Any:
    y = x.sin()
    return y[:2], y[1:].t()


def with_gaps(x: Any) -> Any:
    return (x * 2)[:, ::2]


def repeated(x: Any) -> Any:
    return x.sum(0).expand(2, 4)


def flat_and_square(x: Any) -> Any:
    y = x.sin()
    return y.reshape(-1), y, y.t(), {"part": y[1, 1:3]}


def made_detached(x: Any) -> Any:
    y = x * 3
    return y, y.detach()


def under_no_grad(x: Any) -> Any:
    with tg.no_grad():
        y = x * 2
        return y[0], y


def diagonal(x: Any) -> Any:
    return x.diagonal(), x[:3, :3]


def detached_parts(x: Any) -> Any:
    return x.detach()[0], x[0].detach()


def in_parts(x: Any) -> Any:
    return (x * 2).chunk(2, 1)


def unbound(x: Any) -> Any:
    return tuple(x)


def written_inside(x: Any) -> Any:
    y = x * 2
    y[0] = 5.0
    return y, y[0], y[1]


def argument_written_inside(x: Any) -> Any:
    with tg.no_grad():
        x[0].mul_(2)
    return x[0], x * 2


REPLAYED = (
    row, rows, transposed, moved, reshaped, expanded, itself_and_a_view, twice, view_of_a_view,
    detached, of_a_module, of_a_table, made_and_a_view, two_views_of_what_is_not_returned, with_gaps,
    repeated, flat_and_square, made_detached, under_no_grad,
)  # fmt: skip
OTHERS = (diagonal, detached_parts, in_parts, unbound, written_inside, argument_written_inside)


def tensors(result: Any) -> list[Any]:
    if isinstance(result, tg.Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [t for part in parts for t in tensors(part)]


def relations(found: list[Any], before: dict[int, int]) -> list[Any]:
    """Who shares what with whom, and what each is."""
    said: list[Any] = []
    for a in found:
        said.append((
            a.shape, a.stride(), a.storage_offset(), a.requires_grad, a.is_leaf,
            a._version - before.get(id(a._storage), 0),
            a._base is None, a._is_view(), a.grad_fn is None,
        ))  # fmt: skip
        for b in found:
            shared = np.may_share_memory(a._array, b._array)
            offset = b.data_ptr() - a.data_ptr() if shared else None
            said.append((a is b, a._base is b, a._base is b._base, shared, offset))
    return said


def values(found: list[Any]) -> list[Any]:
    return [t.detach().clone() for t in found]


def write(k: int, found: list[Any], source: Any) -> None:
    """Write through one of the tensors: the others see it, and all counters move."""
    with tg.no_grad():
        target = [*found, source][k % (len(found) + 1)]
        if target.ndim and 0 not in target.stride():
            target[..., :1].add_(100.0)


def write_with_history(k: int, found: list[Any], source: Any) -> Any:
    target = found[k % len(found)]
    if target.requires_grad and not target.is_leaf and 0 not in target.stride():
        target.mul_(3.0)
    return None


def source(k: int, leaf: bool) -> Any:
    x = (tg.arange(12.0).reshape(3, 4) / 10 + k / 7).requires_grad_()
    return x if leaf else x * 1


def outcome(
    fn: Callable[..., Any], k: int, leaf: bool, act: Callable[[int, list[Any], Any], Any]
) -> list[Any]:
    """What there is to see of one call, before and after a write; and the gradients."""
    x = source(k, leaf)
    root = x if leaf else x.grad_fn.next_functions[0][0].variable
    LAYER.zero_grad()
    before = {id(t._storage): t._version for t in (LAYER.weight, TABLE["a"])}
    found = tensors(fn(x))
    seen = [relations([*found, x], before), values(found)]
    weights = [tg.rand(t.shape, generator=tg.Generator().manual_seed(k)) for t in found]
    try:
        act(k, found, x)
        seen += [relations([*found, x], before), values([*found, x])]
        wanted = [(t * w).sum() for t, w in zip(found, weights, strict=True) if t.requires_grad]
        if wanted:
            sum(wanted).backward()
        seen += [root.grad, LAYER.weight.grad]
    except tg.errors.GradientError as error:
        seen.append(str(error).partition(":")[0])
    with tg.no_grad():
        LAYER.weight.fill_(0.25)
        TABLE["a"].copy_(tg.arange(12.0).reshape(3, 4))
    return seen


def same(mine: Any, theirs: Any) -> None:
    assert type(mine) is type(theirs)
    if isinstance(mine, list):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            same(a, b)
    elif isinstance(mine, tg.Tensor):
        # sin and exp of libm's vector functions may differ by 4 ulp
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=2e-6, atol=1e-6)
    else:
        assert mine == theirs


@pytest.mark.parametrize("act", [write, write_with_history], ids=["write", "with history"])
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "result"])
@pytest.mark.parametrize("program", REPLAYED, ids=lambda f: f.__name__)
def test_replayed_as_eagerly(program: Any, leaf: bool, act: Any) -> None:
    compiled = tg.compile(program, wait=True, strict=True)
    for k in range(6):
        same(outcome(compiled, k, leaf, act), outcome(program, k, leaf, act))
    assert compiled.cache_info().hits == 5


@pytest.mark.filterwarnings("ignore::tracegrad.EagerWarning")
@pytest.mark.parametrize("act", [write, write_with_history], ids=["write", "with history"])
@pytest.mark.parametrize("program", OTHERS, ids=lambda f: f.__name__)
def test_replayed_or_eager_but_never_otherwise(program: Any, act: Any) -> None:
    compiled = tg.compile(program, wait=True)
    for leaf in (True, False):
        for k in range(4):
            same(outcome(compiled, k, leaf, act), outcome(program, k, leaf, act))


def test_arguments_that_are_views_themselves() -> None:
    """Then the base is theirs, whatever it is at this call."""
    compiled = tg.compile(rows, wait=True, strict=True)
    for k in range(6):
        base = tg.arange(24.0).reshape(2, 3, 4) + k
        x = (base[1], base[0], base.reshape(6, 4)[:3])[k % 3]
        for v in compiled(x):
            assert v._base is base
            assert v._version == base._version
        compiled(x)[0].zero_()
        assert x[1:].sum().item() == 0 and base.sum().item() != 0
    assert compiled.cache_info().hits >= 8


def test_layouts_that_vary() -> None:
    compiled = tg.compile(lambda x: (x.reshape(-1), x[0]), wait=True, strict=True)
    for k in range(9):
        x = tg.arange(12.0).reshape(3, 4)
        x = (x, x.t(), x[:, :2])[k % 3]
        flat, first = compiled(x)
        assert flat.tolist() == x.reshape(-1).tolist() and first.tolist() == x[0].tolist()
        assert (flat._base is None) == (x.reshape(-1)._base is None)
        assert flat.is_contiguous() and np.may_share_memory(first._array, x._array)
    assert compiled.cache_info().hits == 6


def test_a_view_beside_a_hook_runs_eagerly() -> None:
    def program(x: Any) -> Any:
        y = x * 2
        y.register_hook(lambda g: g * 3)
        return y, y[0]

    compiled = tg.compile(program, wait=True)
    with pytest.warns(tg.EagerWarning, match="a result is a view, beside functions"):
        for _ in range(3):
            x = source(0, True)
            y, v = compiled(x)
            assert v._base is y
            (y.sum() + v.sum()).backward()
            assert x.grad[0].tolist() == [12.0] * 4 and x.grad[1].tolist() == [6.0] * 4


def test_second_derivatives_through_views() -> None:
    compiled = tg.compile(flat_and_square, wait=True, strict=True)
    for k in range(4):
        found = []
        for fn in (compiled, flat_and_square):
            x = source(k, True)
            flat, y, turned, rest = fn(x)
            total = (flat**2).sum() + (y * turned.t()).sum() + rest["part"].sum()
            (g,) = tg.autograd.grad(total, x, create_graph=True)
            found.append([g.detach(), tg.autograd.grad((g * g).sum(), x)[0]])
        for mine, theirs in zip(*found, strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-4)  # sums of squares
    assert compiled.cache_info().hits == 3
