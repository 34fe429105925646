"""In-place methods: the value of the function of the same name, who changed what, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as tg
from tracegrad.tracer.inplace_methods import INPLACE_FUNCTIONS

F64 = tg.float64


def leaf(*shape: int) -> Any:
    n = 1
    for k in shape:
        n *= k
    return (tg.arange(n, dtype=F64).reshape(shape) * 0.1 + 0.15).requires_grad_()


# ---- values and gradients are those of the function ---------------------------------------------

CASES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        "abs acos asin atan ceil cos cosh erf erfc exp exp2 expm1 floor frac lgamma log log10 log1p "
        "log2 logit neg reciprocal relu round rsqrt sigmoid sign sin sinh sqrt square tan tanh tril "
        "triu trunc deg2rad rad2deg nan_to_num".split(),
        (),
    ),
    "add": (2.5,), "sub": (2.5,), "mul": (2.5,), "div": (2.5,), "pow": (3,), "fmod": (0.2,),
    "remainder": (0.2,), "floor_divide": (0.2,), "clamp": (0.2, 0.5), "clamp_min": (0.3,),
    "cumsum": (1,), "cumprod": (0,), "lerp": (tg.ones(2, 3, dtype=F64), 0.3),
    "addcmul": (tg.ones(2, 3, dtype=F64), tg.ones(3, dtype=F64) * 2),
    "addcdiv": (tg.ones(2, 3, dtype=F64), tg.ones(3, dtype=F64) * 2),
    "xlogy": (tg.ones(3, dtype=F64) * 2,), "atan2": (tg.ones(3, dtype=F64),),
    "masked_fill": (tg.tensor([True, False, True]), 2.0),
    "masked_scatter": (tg.tensor([True, False, True]), tg.arange(4, dtype=F64)),
    "index_add": (1, tg.tensor([0, 0]), tg.ones(2, 2, dtype=F64)),
    "index_copy": (1, tg.tensor([2, 0]), tg.ones(2, 2, dtype=F64)),
    "index_fill": (0, tg.tensor([1]), 4.0),
    "index_put": ((tg.tensor([1, 0]), tg.tensor([2, 2])), tg.ones(2, dtype=F64)),
    "scatter": (0, tg.tensor([[0, 1, 0]]), 7.0),
    "scatter_add": (0, tg.tensor([[0, 1, 0]]), tg.ones(1, 3, dtype=F64)),
    "addmm": (tg.ones(2, 2, dtype=F64), tg.ones(2, 3, dtype=F64)),
    "addr": (tg.ones(2, dtype=F64), tg.ones(3, dtype=F64)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_the_function(name: str) -> None:
    x, y = leaf(2, 3), leaf(2, 3)
    written = x * 1
    assert getattr(written, f"{name}_")(*CASES[name]) is written
    made = getattr(y * 1, name)(*CASES[name])
    assert written._version == 1 and written.tolist() == made.tolist()
    written.sum().backward()
    if made.requires_grad:
        made.sum().backward()
        assert x.grad.tolist() == y.grad.tolist()
    else:  # roundings: the slope is 0
        assert x.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("write", "node"),
    [
        (lambda b: b.zero_(), "ZeroBackward0"),
        (lambda b: b.fill_(2), "FillBackward2"),
        (lambda b: b.fill_(tg.tensor(2.0)), "FillBackward3"),
        (lambda b: b.copy_(tg.ones(3)), "torch::autograd::CopyBackwards"),
        (lambda b: b.__setitem__(slice(None), 1.0), "FillBackward3"),
        (lambda b: b.normal_(), "NormalBackward0"),
        (lambda b: b.uniform_(), "UniformBackward0"),
        (lambda b: b.bernoulli_(), "BernoulliBackward2"),
        (lambda b: b.exponential_(), "ExponentialBackward0"),
        (lambda b: b.gt_(0), "GtBackward0"),
    ],
)  # fmt: skip
def test_write_of_a_constant_leaves_a_gradient_of_zeros(write: Any, node: str) -> None:
    x = leaf(2, 3)
    b = x * 1
    write(b)
    assert b.requires_grad and b.grad_fn.name() == node
    assert b.grad_fn.next_functions[0][0].name() == "MulBackward0"
    b.sum().backward()
    assert x.grad.tolist() == [[0.0] * 3] * 2


def test_augmented_operators_write_in_place() -> None:
    y = z = tg.tensor([6, 7])
    y += 1
    y -= 2
    y *= 3
    y //= 2
    y %= 5
    y <<= 3
    y >>= 1
    y |= 1
    y ^= 3
    y &= 14
    assert y is z and y._version == 10 and y.tolist() == [10, 2]
    f = g = tg.tensor([4.0])
    f /= 2
    f **= 3
    assert f is g and f.tolist() == [8.0] and f._version == 2
    m = n = tg.ones(2, 2)
    m @= m  # PyTorch has no in-place product: a new tensor
    assert m is not n and m.tolist() == [[2.0, 2.0], [2.0, 2.0]] and n._version == 0


def test_random_fills() -> None:
    tg.manual_seed(0)
    x = tg.empty(2000, dtype=F64)
    assert abs(x.exponential_(2.0).mean().item() - 0.5) < 0.05 and x.min().item() >= 0
    assert abs(x.log_normal_(0.0, 0.5).log().std().item() - 0.5) < 0.05
    assert abs(x.geometric_(0.25).mean().item() - 4) < 0.4 and x.min().item() == 1
    assert abs((x.cauchy_(3.0, 1.0) < 3).double().mean().item() - 0.5) < 0.05
    assert abs(x.bernoulli_(0.3).mean().item() - 0.3) < 0.05
    assert abs(x.bernoulli_(tg.tensor(0.9)).mean().item() - 0.9) < 0.05
    assert set(x.random_(2, 5).tolist()) == {2.0, 3.0, 4.0}
    assert set(tg.empty(99, dtype=tg.int64).random_(2).tolist()) == {0, 1}
    assert x._version == 7


# ---- who changed a saved value ------------------------------------------------------------------


def by_setitem(b: Any) -> None:
    b[0] = 1.0


def by_operator(b: Any) -> None:
    b *= 2


def by_mask(b: Any) -> None:
    b[b > 0] = 1.0


def by_view(b: Any) -> None:
    b.view(-1)[1:].add_(1)


def by_detached(b: Any) -> None:
    b.detach().zero_()


def by_out(b: Any) -> None:
    tg.add(tg.ones(2, 3, dtype=F64), 1, out=b.detach())


def by_move(b: Any) -> None:
    b.t_()


def by_optimizer(b: Any) -> None:
    b.grad = tg.ones_like(b)
    tg.optim.SGD([b], lr=0.1).step()


@pytest.mark.parametrize(
    ("write", "name"),
    [(by_setitem, "fill_"), (by_operator, "mul_"), (by_mask, "index_put_"), (by_view, "add_"),
     (by_detached, "zero_"), (by_out, "add(out=)"), (by_move, "t_")],
)  # fmt: skip
def test_overwritten_saved_value_names_who_did_it(write: Any, name: str) -> None:
    b = leaf(2, 3) * 1
    total = (b * b).sum()
    write(b)
    line = write.__code__.co_firstlineno + 1
    text = f"It was modified by {name} at test_inplace_methods.py:{line} ("
    with pytest.raises(RuntimeError, match=re.escape(text)):
        total.backward()


def test_optimizer_step_is_named_as_the_writer() -> None:
    x = leaf(2, 3)
    total = (x * x).sum()
    by_optimizer(x)
    line = by_optimizer.__code__.co_firstlineno + 2
    text = rf"is at version \d+; expected version 0 instead.*at test_inplace_methods.py:{line} "
    with pytest.raises(RuntimeError, match=text):
        total.backward()


def test_writes_to_data_are_not_counted() -> None:
    x = leaf(2, 3)
    y = x.exp()
    total = (y * 2).sum()
    y.data.zero_()
    x.data.mul_(5)
    assert x._version == y._version == 0
    total.backward()  # wrong, by the user's own doing: exp kept its result
    assert x.grad.tolist() == [[0.0] * 3] * 2


# ---- refusals change nothing --------------------------------------------------------------------

_LEAF = "a leaf Variable that requires grad is being used in an in-place operation."
_SHARED = (
    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a "
    "single memory location. Please clone() the tensor before performing the operation."
)
_ITSELF = (
    "unsupported operation: more than one element of the written-to tensor refers to a single memory "
    "location. Please clone() the tensor before performing the operation."
)
_PUT = "Index put requires the source and destination dtypes match, got Double for the destination"
one, two = tg.ones(1, dtype=F64), tg.ones(2, dtype=F64)
at = tg.tensor([0])

REFUSED: tuple[tuple[Callable[[Any], Any], type[Exception], str], ...] = (
    (lambda b: b.add_(tg.ones(4)), RuntimeError, "The size of tensor a (3) must match the size of "
     "tensor b (4) at non-singleton dimension 1"),
    (lambda b: b.mul_(tg.ones(2, 2, 3)), RuntimeError, "output with shape [2, 3] doesn't match the "
     "broadcast shape [2, 2, 3]"),
    (lambda b: b.copy_(tg.ones(2)), RuntimeError, "The size of tensor a (3) must match the size of "
     "tensor b (2) at non-singleton dimension 1"),
    (lambda b: b.copy_("a"), TypeError, "copy_(): argument 'other' (position 1) must be Tensor, not "
     "str"),
    (lambda b: b.fill_(two), RuntimeError, "fill_ only supports 0-dimension value tensor but got "
     "tensor with 1 dimensions."),
    (lambda b: b.fill_("a"), TypeError, "fill_() received an invalid combination of arguments - got "
     "(str), but expected one of:"),
    (lambda b: b.masked_fill_(b, 1), RuntimeError, "masked_fill_ only supports boolean masks, but "
     "got mask with dtype double"),
    (lambda b: b.masked_fill_(b > 0, two), RuntimeError, "masked_fill_ only supports a "
     "0-dimensional value tensor, but got tensor with 1 dimension(s)."),
    (lambda b: b.masked_fill_([1], 2), TypeError, "masked_fill_() received an invalid combination "
     "of arguments - got (list, int)"),
    (lambda b: b.masked_scatter_(b > -9, two), RuntimeError, "Number of elements of source < number "
     "of ones in mask"),
    (lambda b: b.index_add_(0, at, two[None]), RuntimeError, "source tensor shape must match self "
     "tensor shape, excluding the specified dimension. Got self.shape = [2, 3] source.shape = "
     "[1, 2]"),
    (lambda b: b.index_add_(1, at, b), RuntimeError, "index_add_(): Number of indices (1) should be "
     "equal to source.size(dim): (3), for dim: 1"),
    (lambda b: b.index_add_(0, at.double(), b[:1]), RuntimeError, "index_add_(): Expected dtype "
     "int32/int64 for index but got: Double"),
    (lambda b: b.index_add_(0, at, b[:1].float()), RuntimeError, "index_add_(): self (Double) and "
     "source (Float) must have the same scalar type"),
    (lambda b: b.index_add_(0, at + 5, b[:1].clone()), IndexError, "index 5 is out of bounds for "
     "dimension 0 with size 2"),
    (lambda b: b.index_copy_(0, at[None], b[:1]), IndexError, "index_copy_(): Index should have "
     "dimension 1 or 0 (got 2)"),
    (lambda b: b.index_copy_(0, at, two), IndexError, "index_copy_(): When source and destination "
     "are not scalars, their dimensionality must match. Source dimensionality (1), destination "
     "dimensionality (2)"),
    (lambda b: b.index_fill_(0, at, two), RuntimeError, "index_fill_ only supports a 0-dimensional "
     "value tensor, but got tensor with 1 dimension(s)."),
    (lambda b: b.index_put_(at, one), TypeError, "index_put_(): argument 'indices' (position 1) must "
     "be tuple of Tensors, not Tensor"),
    (lambda b: b.index_put_((at,), 1.0), TypeError, "index_put_(): argument 'values' (position 2) "
     "must be Tensor, not float"),
    (lambda b: b.index_put_((at,), tg.ones(1)), RuntimeError, _PUT),
    (lambda b: b.index_put_((at, at, at), one), IndexError, "too many indices for tensor of "
     "dimension 2 (got 3)"),
    (lambda b: b.index_put_((at,), two), RuntimeError, "shape mismatch: value tensor of shape [2] "
     "cannot be broadcast to indexing result of shape [1, 3]"),
    (lambda b: b.__setitem__([0], tg.ones(3)), RuntimeError, _PUT),
    (lambda b: b.__setitem__(0, two), RuntimeError, "The expanded size of the tensor (3) must match "
     "the existing size (2) at non-singleton dimension 0.  Target sizes: [3].  Tensor sizes: [2]"),
    (lambda b: b.__setitem__(5, 1), IndexError, "index 5 is out of bounds for dimension 0 with size "
     "2"),
    (lambda b: b.__setitem__(0, "a"), TypeError, "can't assign a str to a torch.DoubleTensor"),
    (lambda b: b.scatter_(0, at, 1.0), RuntimeError, "Index tensor must have the same number of "
     "dimensions as self tensor"),
    (lambda b: b.scatter_(0, at[None], tg.ones(1, 1)), RuntimeError, "scatter(): Expected self.dtype "
     "to be equal to src.dtype"),
    (lambda b: b.scatter_(0, at[None], 1.0, reduce="foo"), RuntimeError, "reduce argument must be "
     "either add or multiply."),
    (lambda b: b.scatter_add_(0, at[None], 1.0), TypeError, "scatter_add_(): argument 'src' "
     "(position 3) must be Tensor, not float"),
    (lambda b: b.fill_diagonal_("a"), TypeError, "fill_diagonal_(): argument 'fill_value' (position 1) "
     "must be Number, not str"),
    (lambda b: b.cumsum_(2), IndexError, "Dimension out of range (expected to be in range of [-2, "
     "1], but got 2)"),
    (lambda b: b.bernoulli_(2), RuntimeError, "bernoulli_ expects p to be in [0, 1], but got p=2"),
    (lambda b: b.normal_(0, -1), RuntimeError, "normal expects std >= 0.0, but found std -1"),
    (lambda b: b.uniform_(2, 1), RuntimeError, "uniform_ expects to return a [from, to) range, but "
     "found from=2 > to=1"),
    (lambda b: b.random_(5, 2), RuntimeError, "random_ expects 'from' to be less than 'to', but got "
     "from=5 >= to=2"),
    (lambda b: b.exponential_(0), RuntimeError, "exponential_ expects lambda > 0.0, but found "
     "lambda=0"),
    (lambda b: b.geometric_(0), RuntimeError, "geometric_ expects p to be in (0, 1), but got p=0"),
    (lambda b: b.add_(b[:1]), RuntimeError, _SHARED),
    (lambda b: b.copy_(b.view(-1)[:3]), RuntimeError, _SHARED),
    (lambda b: b.index_add_(0, at, b[:1]), RuntimeError, _SHARED),
    (lambda b: b.view(-1)[1:].__setitem__(slice(None), b.view(-1)[:-1]), RuntimeError, _SHARED),
    (lambda b: b[:1].expand(2, 3).add_(1), RuntimeError, _ITSELF),
    (lambda b: b.unfold(1, 2, 1).mul_(2), RuntimeError, _ITSELF),
)  # fmt: skip


@pytest.mark.parametrize(("act", "error", "text"), REFUSED)
def test_refused_write_changes_nothing(act: Any, error: type[Exception], text: str) -> None:
    b = leaf(2, 3) * 1
    view, values, node = b[0], b.tolist(), b.grad_fn
    with pytest.raises(error, match=re.escape(text)):
        act(b)
    assert b.tolist() == values and tuple(b.shape) == (2, 3)
    assert b._version == 0 and b.grad_fn is node and view.grad_fn.name() == "SelectBackward0"


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda t: t.uniform_(), NotImplementedError,
         "\"check_uniform_bounds\" not implemented for 'Long'"),
        (lambda t: t.exponential_(), RuntimeError, "Exponential distribution is a continuous "
         "probability distribution. dtype must be a floating point but you specified Long"),
        (lambda t: t.add_(1.5), RuntimeError, "result type Float can't be cast to the desired output "
         "type Long"),
        (lambda t: t.__itruediv__(2), RuntimeError, "result type Float can't be cast to the desired "
         "output type Long"),
        (lambda t: t.requires_grad_(), RuntimeError, "only Tensors of floating point dtype can "
         "require gradients"),
        (lambda t: t.__setitem__([0], tg.tensor([4.5])), RuntimeError, "Index put requires the "
         "source and destination dtypes match, got Long for the destination and Float for the"),
    ],
)  # fmt: skip
def test_refused_write_to_integers_changes_nothing(act: Any, error: Any, text: str) -> None:
    t = tg.tensor([1, 2])
    with pytest.raises(error, match=re.escape(text)):
        act(t)
    assert t.tolist() == [1, 2] and t._version == 0


def test_leaves_are_refused_before_anything_else() -> None:
    x = leaf(2, 3)
    for act in (lambda: x.add_(x[:1]), lambda: x.unsqueeze_(0), lambda: x.fill_(1.0)):
        with pytest.raises(RuntimeError, match=f"^{re.escape(_LEAF)}$"):
            act()
    flagged = tg.ones(3)[:2].requires_grad_()
    with pytest.raises(RuntimeError, match="^a view of a leaf Variable that requires grad"):
        flagged.mul_(2)
    assert x._version == flagged._version == 0


def test_parts_that_do_not_overlap_are_written_from_each_other() -> None:
    x = tg.arange(6.0)
    x[:3].add_(x[3:])
    x[::2].add_(x[1::2])
    x[...] = x[:1]  # the whole of x is broadcast before it is written
    assert x.tolist() == [8.0] * 6
    wide = tg.zeros(2, 1).expand(2, 3)
    wide[:, 0].add_(1)  # of its elements at one place, one is written
    assert wide.tolist() == [[1.0] * 3] * 2
    assert wide.zero_().tolist() == [[0.0] * 3] * 2  # equal values may be written to one place


# ---- inference tensors --------------------------------------------------------------------------

_INFERENCE = (
    "Inplace update to inference tensor outside InferenceMode is not allowed.You can make a clone to "
    "get a normal tensor before doing inplace update.See https://github.com/pytorch/rfcs/pull/17 for "
    "more details."
)


def test_inference_tensors_are_not_saved_nor_written_outside() -> None:
    x = leaf(3)
    with tg.inference_mode():
        made = tg.ones(3, dtype=F64)
        made.add_(1)
        view = made[:2]
        assert made.is_inference() and view.is_inference() and not x[:1].is_inference()
        with tg.inference_mode(False):
            assert not tg.ones(1).is_inference()
    assert not made.clone().is_inference() and not (made + 1).is_inference()
    acts = (lambda: made.mul_(2), lambda: view.zero_(), lambda: made.__setitem__(0, 1.0),
            lambda: made.unsqueeze_(0), lambda: tg.add(two, 1, out=view))  # fmt: skip
    for act in acts:
        with pytest.raises(RuntimeError, match=f"^{re.escape(_INFERENCE)}$"):
            act()
    with pytest.raises(RuntimeError, match="^Inference tensors do not track version counter.$"):
        made._version  # noqa: B018
    with pytest.raises(RuntimeError, match="^Inference tensors cannot be saved for backward."):
        x * made
    with pytest.raises(RuntimeError, match="^Setting requires_grad=True on inference tensor"):
        made.requires_grad_()
    assert made.tolist() == [2.0] * 3
    (x + made).sum().backward()  # nothing to save
    assert x.grad.tolist() == [1.0] * 3


def test_inference_mode_counts_writes_to_normal_tensors() -> None:
    x = leaf(3)
    total = (x * x).sum()
    with tg.inference_mode():
        x.add_(1)
    with pytest.raises(RuntimeError, match="is at version 1; expected version 0"):
        total.backward()


@pytest.mark.parametrize("name", sorted(INPLACE_FUNCTIONS))
def test_a_refused_write_leaves_the_tensor_as_it_was(name: str) -> None:
    """Whatever is wrong with the arguments: values, version, shape, memory and history stay."""
    base = leaf(2, 3)
    x = base * 1
    before = (x.tolist(), x._version, x.shape, x.stride(), x.data_ptr(), x.grad_fn, x.requires_grad)
    refused = 0
    wrong = (
        ("text",),
        (object(), object()),
        (tg.ones(7, 5),),
        (tg.ones(7), tg.ones(5)),
        ("a", "b", "c"),
    )
    for arguments in wrong:
        try:
            getattr(x, name)(*arguments)
        except (TypeError, ValueError, RuntimeError, IndexError):
            refused += 1
            after = (x.tolist(), x._version, x.shape, x.stride(), x.data_ptr(), x.grad_fn)
            assert (*after, x.requires_grad) == before, arguments
        else:  # some read tensors as numbers or sizes, or take any number of arguments
            x = base * 1
            before = (x.tolist(), x._version, x.shape, x.stride(), x.data_ptr(), x.grad_fn, True)
    assert refused >= 2
