"""What functions and methods refuse that take a tensor alone, or nothing: too much, and no tensor.

Classes are those of torch 2.13, and texts where Python does not give them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg

X = tg.ones(2, 3)

NOT_A_TENSOR: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: tg.real("a"), TypeError, "real(): argument 'input' (position 1) must be Tensor, not str"),
    (lambda: tg.is_signed("a"), TypeError, "is_signed(): argument 'input' (position 1) must be Ten"),
    (lambda: tg.is_conj("a"), TypeError, "is_conj(): argument 'input' (position 1) must be Tensor"),
    (lambda: tg.is_neg("a"), TypeError, "is_neg(): argument 'input' (position 1) must be Tensor"),
    (lambda: tg.is_inference("a"), TypeError, "is_inference(): argument 'input' (position 1) must"),
    (lambda: tg.is_storage(), TypeError, "is_storage() missing 1 required positional argument: 'obj"),
    (lambda: tg.typename(), TypeError, "typename() missing 1 required positional argument: 'obj'"),
    (lambda: tg.contiguous("a"), TypeError, "contiguous(): argument 'input' (position 1) must be"),
    (lambda: tg.resize_as_(X, 1), TypeError, "resize_as_(): argument 'the_template' (position 2) must"),
    (lambda: X.resize_as_(1), TypeError, "resize_as_(): argument 'the_template' (position 1) must"),
    (lambda: X.new("a"), TypeError, "new(): invalid data type 'str'"),
    (lambda: X.cauchy_(0, -1.0), RuntimeError, "cauchy_ expects sigma > 0.0, but found sigma=-1"),
    (lambda: X.log_normal_(0, -1.0), RuntimeError, "log_normal_ expects std > 0.0, but found std=-1"),
    (lambda: tg.tensordot(X, X, 1), RuntimeError, "contracted dimensions need to match, but first"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), NOT_A_TENSOR)
def test_refused(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    before = X.tolist()
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(text)
    assert X.tolist() == before and X._version == 0


RUNTIME: list[Callable[[], Any]] = [  # of the state of the process
    lambda: tg.seed(1), lambda: tg.initial_seed(1), lambda: tg.get_rng_state(1),
    lambda: tg.is_grad_enabled(1), lambda: tg.is_inference_mode_enabled(1),
    lambda: tg.get_default_device(1), lambda: tg.get_printoptions(1),
    lambda: tg.get_default_dtype(1),
]  # fmt: skip
TYPES: list[Callable[[], Any]] = [  # of a tensor
    lambda: X.byte(1), lambda: X.char(1), lambda: X.chalf(1), lambda: X.cdouble(1),
    lambda: X.cfloat(1), lambda: X.conj(1), lambda: X.cpu(1), lambda: X.contiguous("a"),
    lambda: X.data_ptr(1), lambda: X.dim(1), lambda: X.ndimension(1), lambda: X.nelement(1),
    lambda: X.element_size(1), lambda: X.get_device(1), lambda: X.is_conj(1), lambda: X.is_neg(1),
    lambda: X.is_contiguous("a"), lambda: X.is_inference(1), lambda: X.is_pinned(1, 2),
    lambda: X.is_shared(1), lambda: X.is_signed(1), lambda: X.resolve_conj(1),
    lambda: X.resolve_neg(1), lambda: X.storage(1), lambda: X.storage_offset(1),
    lambda: X.untyped_storage(1),
]  # fmt: skip


@pytest.mark.parametrize("call", RUNTIME + TYPES)
def test_more_than_they_take_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(
        TypeError, match=r"\(\) takes (from \d to )?\d positional arguments? but \d w"
    ):
        call()
