"""What func.vmap refuses, by PyTorch's texts (torch 2.13), and that nothing is half done then."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as torch
from tracegrad.func import grad, jacfwd, jacrev, stack_module_state, vmap

X = torch.arange(6.0).reshape(3, 2)


def identity(a: Any) -> Any:
    return a


def product(a: Any, b: Any) -> Any:
    return a * b


CALLS: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "item": (RuntimeError, "vmap: It looks like you're calling .item() on a Tensor.",
             lambda: vmap(lambda a: a.sum().item())(X)),
    "int": (RuntimeError, "vmap: It looks like you're calling .item() on a Tensor.",
            lambda: vmap(lambda a: a * int(a.sum()))(X)),
    "branch": (RuntimeError, "vmap: It looks like you're attempting to use a Tensor in some "
               "data-dependent control flow.", lambda: vmap(lambda a: a if a.sum() > 0 else -a)(X)),
    "numpy": (RuntimeError, "vmap: numpy reads the values of a tensor that differ",
              lambda: vmap(lambda a: torch.from_numpy(a.numpy()))(X)),
    "tolist": (RuntimeError, "vmap: tolist reads the values", lambda: vmap(lambda a: a.tolist())(X)),
    "mask": (RuntimeError, "Attempting to batch over indexing with a boolean mask.",
             lambda: vmap(lambda a: a[a > 0])(X)),
    "nonzero": (RuntimeError, "Attempted to vmap over aten::nonzero.",
                lambda: vmap(lambda a: a.nonzero())(X)),
    "backward": (RuntimeError, "backward() called inside a functorch transform.",
                 lambda: grad(lambda a: (a.sum().backward(), a.sum())[1])(X)),
    "backward in vmap": (RuntimeError, "backward() called inside a functorch transform.",
                         lambda: vmap(lambda a: a.sum().backward())(X)),
    "out_dims None": (ValueError, "vmap(identity, ...): `identity` can not return a BatchedTensor "
                      "when out_dim is None", lambda: vmap(identity, out_dims=None)(X)),
    "result": (ValueError, "must only return Tensors, got type <class 'int'>. Did you mean to set "
               "out_dims= to None for output?", lambda: vmap(lambda a: 3)(X)),
    "no arguments": (ValueError, "vmap(identity)(<inputs>): got no inputs. Maybe you forgot to add",
                     lambda: vmap(identity)()),
    "number": (ValueError, "We cannot vmap over non-Tensor arguments, please use None as the",
               lambda: vmap(product)(X, 3)),
    "in_dim": (ValueError, "vmap(product, in_dims=(0, 5), ...)(<inputs>): Got in_dim=5 for some "
               "input, but that input is a Tensor of dimensionality 2 so expected in_dim to satisfy "
               "-2 <= in_dim < 2.", lambda: vmap(product, in_dims=(0, 5))(X, X)),
    "in_dims count": (ValueError, "in_dims is not compatible with the structure of `inputs`. in_dims "
                      "has structure (*,) but inputs has structure (*, *).",
                      lambda: vmap(product, in_dims=(0,))(X, X)),
    "in_dims kind": (ValueError, "expected `in_dims` to be int or a (potentially nested) tuple "
                     "matching the structure of inputs, got: <class 'str'>.",
                     lambda: vmap(product, in_dims="a")(X, X)),
    "in_dim float": (ValueError, "Got in_dim=1.5 for an input but in_dim must be either an integer "
                     "dimension or None.", lambda: vmap(product, in_dims=(0, 1.5))(X, X)),
    "sizes": (ValueError, "vmap: Expected all tensors to have the same size in the mapped dimension, "
              "got sizes [3, 2] for the mapped dimension",
              lambda: vmap(product, in_dims=(0, 1))(X, X)),
    "nothing mapped": (ValueError, "vmap: Expected at least one Tensor to vmap over",
                       lambda: vmap(product, in_dims=(None, None))(X, X)),
    "out_dims count": (ValueError, "out_dims is not compatible with the structure of `outputs`.",
                       lambda: vmap(lambda a: (a, a), out_dims=(0,))(X)),
    "out_dims kind": (ValueError, "`out_dims` must be an int, None or a python collection of ints",
                      lambda: vmap(identity, out_dims="z")(X)),
    "out_dim": (IndexError, "Dimension out of range (expected to be in range of [-2, 1], but got 4)",
                lambda: vmap(identity, out_dims=4)(X)),
    "chunk_size": (ValueError, "vmap: chunk_size should be None or greater than 0. (got 0)",
                   lambda: vmap(identity, chunk_size=0)),
    "jacrev chunk_size": (ValueError, "`chunk_size` should be greater than 0.",
                          lambda: jacrev(identity, chunk_size=0)),
    "randomness": (RuntimeError, "Only allowed values for randomness are 'error', 'different', or "
                   "'same'. Got x", lambda: vmap(identity, randomness="x")),
    "jacfwd random": (RuntimeError, "vmap: called random operation while in randomness error mode.",
                      lambda: jacfwd(lambda a: a * torch.rand(3, 2))(X)),
    "no modules": (RuntimeError, "stack_module_state: Expected at least one model, got 0.",
                   lambda: stack_module_state([])),
    "modes": (RuntimeError, "Expected all models to have the same training/eval mode.",
              lambda: stack_module_state([torch.nn.ReLU(), torch.nn.ReLU().eval()])),
    "classes": (RuntimeError, "Expected all models to be of the same class.",
                lambda: stack_module_state([torch.nn.ReLU(), torch.nn.Tanh()])),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_refusal(name: str) -> None:
    error, text, call = CALLS[name]
    before = X.tolist(), X._version
    with pytest.raises(error, match=re.escape(text)):
        call()
    assert (X.tolist(), X._version) == before
    assert torch.tracer.state.state.recorder is None and not torch.tracer.state.state.transforms
    assert vmap(identity)(X).tolist() == X.tolist()  # the next call is right


def test_a_write_through_a_view_that_had_to_be_copied_is_refused() -> None:
    """Row-major memory of one example is not so in the batch, which lies along dimension 1."""
    batch = torch.arange(12.0).reshape(2, 3, 2)

    def f(a: torch.Tensor) -> torch.Tensor:
        a.reshape(-1)[0] = 9.0
        return a

    with pytest.raises(NotImplementedError, match="writes through a view whose batch or tangent"):
        vmap(f, in_dims=1)(batch)
