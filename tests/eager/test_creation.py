"""Making tensors: shared memory, layouts, `out=`, warnings, and what is refused in our own words."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import tracegrad as tg


def test_like_keeps_the_order_of_dimensions_unless_told() -> None:
    """PyTorch's `preserve_format`: a transposed input gives a transposed result."""
    x = tg.ones(2, 3, 4).permute(2, 0, 1)
    for make in (
        tg.zeros_like,
        tg.ones_like,
        tg.empty_like,
        lambda x, **k: tg.full_like(x, 2, **k),
    ):
        assert make(x).stride() == (1, 12, 4)
        assert make(x, memory_format=tg.contiguous_format).stride() == (6, 3, 1)
        assert make(x, dtype=tg.int8).dtype is tg.int8


def test_out_is_written_or_resized_and_returned() -> None:
    kept = tg.empty(2, 3, dtype=tg.int64)
    assert tg.full((2, 3), 2.5, out=kept) is kept and kept.tolist() == [[2] * 3] * 2
    assert kept._version == 1
    row = kept[1]
    tg.arange(3, out=row)
    assert kept.tolist() == [[2, 2, 2], [0, 1, 2]]
    resized = tg.empty(0)
    assert tg.eye(2, out=resized) is resized and resized.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert tg.linspace(0, 1, 3, out=tg.empty(3), requires_grad=True).requires_grad


def test_arrays_and_tensors_are_shared_where_no_conversion_is_needed() -> None:
    array = np.zeros(2)
    for make in (tg.as_tensor, tg.asarray, tg.from_numpy, tg.from_dlpack):
        shared = make(array)
        array[0] += 1
        assert shared[0].item() == array[0]
    before = array[0]
    copies = (tg.tensor(array), tg.asarray(array, copy=True), tg.as_tensor(array, dtype=tg.float32))
    array[0] += 1
    assert [x[0].item() for x in copies] == [before] * 3
    x = tg.ones(2, requires_grad=True)
    assert tg.as_tensor(x) is x and tg.asarray(x, requires_grad=True) is x
    assert not tg.asarray(x, requires_grad=False).requires_grad
    buffer = bytearray(8)
    numbers = tg.frombuffer(buffer, dtype=tg.int32)
    buffer[0] = 7
    assert numbers.tolist() == [7, 0]


def test_a_list_of_tensors_is_read_as_numbers() -> None:
    """PyTorch stacks no tensors here: each must have one element."""
    assert tg.tensor([tg.tensor([1]), tg.tensor(2)]).tolist() == [1, 2]
    assert tg.tensor([tg.tensor(1.5, dtype=tg.float64), 2]).dtype is tg.float64
    with pytest.raises(ValueError, match="only one element tensors can be converted"):
        tg.tensor([tg.ones(2), tg.ones(2)])


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda: tg.tensor(tg.ones(1)), r"rather than torch\.tensor\(sourceTensor\)"),
        (lambda: tg.ones(1).new_tensor(tg.ones(1)), r"rather than tensor\.new_tensor\(sourceTensor"),
        (lambda: tg.tensor([np.ones(2), np.ones(2)]), "list of numpy.ndarrays is extremely slow"),
        (lambda: tg.tensor([tg.ones(1, requires_grad=True)]), "requires_grad=True to a scalar"),
        (lambda: float(tg.ones(1, requires_grad=True)), "requires_grad=True to a scalar"),
        (lambda: tg.asarray(tg.ones(1, requires_grad=True)), "unspecified requires_grad now"),
        (lambda: tg.from_numpy(np.broadcast_to(np.ones(1), (3,))), "NumPy array is not writable"),
        (lambda: tg.frombuffer(b"ab", dtype=tg.uint8), "The given buffer is not writable"),
        (lambda: tg.range(1, 2), "torch.range is deprecated"),
        (lambda: tg.ones(2, 3)[[[0, 1], [1, 2]]], "Using a non-tuple sequence for multidimensional"),
        (lambda: tg.ones(2)[tg.tensor([1, 0], dtype=tg.uint8)], "indexing with dtype torch.uint8"),
        (lambda: tg.ones(2, 3, 4).T, "tensors of dimension other than 2"),
        (lambda: tg.ones(3).T, "tensors of dimension other than 2"),
        (lambda: tg.tensor(1.0).T, "Tensor.T is deprecated on 0-D tensors"),
        (lambda: tg.tensor(1.0).adjoint(), "adjoint.. is deprecated on 0-D tensors"),
        (lambda: tg.tensor(1.0).mT, "Tensor.mT is deprecated on 0-D tensors"),
        (lambda: tg.ones(1).storage(), "TypedStorage is deprecated"),
        (lambda: tg.set_default_tensor_type(tg.FloatTensor), "set_default_tensor_type.. is deprec"),
    ],
)  # fmt: skip
def test_warnings_are_pytorchs(act: Any, text: str) -> None:
    with pytest.warns(UserWarning, match=text):
        act()


def test_plain_data_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tg.tensor([1e300, 2.0]), tg.tensor([[1, 2], [3, 4]]), tg.tensor(np.ones(2))
        tg.full((2,), float("nan")), tg.logspace(0, 400, 3), tg.from_numpy(np.ones(2))
        tg.ones(2, 3).T, int(tg.ones(1, requires_grad=True)), tg.ones(1, requires_grad=True).item()


@pytest.mark.parametrize("dtype", [tg.complex32, tg.complex64, tg.complex128, complex], ids=str)
def test_complex_tensors_are_refused_by_name(dtype: Any) -> None:
    """The dtypes have names, so that ported code can compare with them."""
    assert tg.cfloat is tg.complex64 and tg.ones(1).dtype != dtype
    for act in (
        lambda: tg.zeros(2, dtype=dtype), lambda: tg.tensor([1.0], dtype=dtype),
        lambda: tg.ones(2).to(dtype), lambda: tg.arange(3, dtype=dtype),
        lambda: tg.ones_like(tg.ones(1), dtype=dtype), lambda: tg.as_tensor([1], dtype=dtype),
        lambda: tg.ones(2).new_zeros(2, dtype=dtype), lambda: tg.rand(2, dtype=dtype),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match="complex tensors are not supported yet"):
            act()


@pytest.mark.parametrize(
    "act",
    [
        lambda: tg.tensor(1j), lambda: tg.tensor([1, 1j]), lambda: tg.tensor(np.ones(1, complex)),
        lambda: tg.from_numpy(np.ones(1, complex)), lambda: tg.full((1,), 1j),
        lambda: tg.ones(1).fill_(1j), lambda: tg.ones(2).cfloat(), lambda: tg.arange(1j),
        lambda: tg.tensor(np.complex64(1)), lambda: tg.linspace(0, 1j, 3),
    ],
)  # fmt: skip
def test_complex_numbers_are_refused(act: Any) -> None:
    with pytest.raises(RuntimeError, match="complex tensors are not supported yet"):
        act()


@pytest.mark.filterwarnings("ignore:torch.range is deprecated")
@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda: tg.zeros(2, layout=tg.sparse_coo), NotImplementedError, "layout torch.sparse_coo"),
        (lambda: tg.zeros(2, pin_memory=True), RuntimeError, "pin_memory=True requires a CUDA"),
        (lambda: tg.ones(2).clone(memory_format=tg.channels_last), NotImplementedError,
         "memory format torch.channels_last is not supported"),
        (lambda: tg.zeros(2, size=(2,)), TypeError, "multiple values for argument 'size'"),
        (lambda: tg.zeros(2, out=3), TypeError, "'out' must be Tensor, not int"),
        (lambda: tg.zeros(2, out=tg.ones(2, requires_grad=True)), RuntimeError,
         "functions with out=... arguments don't support automatic differentiation"),
        (lambda: tg.zeros(2**40, 2**40), RuntimeError, "Storage size calculation overflowed"),
        (lambda: tg.empty_strided((2, 3), (1,)), RuntimeError, "dimensionality of sizes .2. must match"),
        (lambda: tg.empty_strided((2,), (-1,)), RuntimeError, "negative dimension -1"),
        (lambda: tg.range(1, 5, 0), RuntimeError, "step must be nonzero"),
        (lambda: tg.range(5, 1), RuntimeError, "inconsistent with step sign"),
        (lambda: tg.arange(5, start=1, end=2), TypeError, "multiple values for argument"),
        (lambda: tg.from_dlpack(3), RuntimeError, "from_dlpack received an invalid capsule"),
        (lambda: tg.to_dlpack(tg.ones(1, requires_grad=True)), BufferError, "require gradient"),
        (lambda: tg.frombuffer(3, dtype=tg.int8), ValueError, "Python buffer protocol"),
        (lambda: tg.as_tensor([[1], [2, 3]]), ValueError, "expected sequence of length 1 at dim 1"),
        (lambda: tg.from_numpy(np.ones(3)[::-1]), ValueError, "stride in the given numpy array is"),
        (lambda: tg.from_numpy(np.array(["a"])), TypeError, "can't convert np.ndarray of type"),
        (lambda: tg.LongTensor(tg.ones(2)), TypeError, "expected a tensor of dtype torch.int64"),
        (lambda: tg.FloatTensor(2.5), TypeError, "data must be a sequence .got float."),
        (lambda: tg.Tensor("a"), TypeError, "new.*: invalid data type 'str'"),
        (lambda: tg.randint(0, 300, (2,), dtype=tg.uint8), RuntimeError, "to - 1 is out of bounds"),
        (lambda: tg.randint_like(tg.ones(1), 3, 3), RuntimeError, "expects 'from' to be less"),
        (lambda: tg.rand(2, dtype=tg.int64), NotImplementedError, "not implemented for 'Long'"),
        (lambda: tg.randn_like(3), TypeError, "'input' .position 1. must be Tensor, not int"),
        (lambda: tg.rand_like(tg.ones(1, dtype=tg.bool)), NotImplementedError, "for 'Bool'"),
        (lambda: tg.randperm(-1), RuntimeError, "negative dimension -1"),
        (lambda: tg.normal(0.0, -1.0, (2,)), RuntimeError, "normal expects std >= 0.0"),
        (lambda: tg.normal(0.0, 1.0), TypeError, 'missing 1 required .* "size"'),
        (lambda: tg.normal(tg.zeros(2), tg.ones(3)), RuntimeError, "must match"),
        (lambda: tg.bernoulli(tg.ones(1), 2.0), RuntimeError, r"p to be in \[0, 1\], but got p=2"),
        (lambda: tg.ones(2).uniform_(2, 1), RuntimeError, r"\[from, to\) range, but found from=2"),
        (lambda: tg.ones(2).normal_(0, -1), RuntimeError, "normal expects std >= 0.0"),
        (lambda: tg.ones(2).bernoulli_(2.0), RuntimeError, "bernoulli_ expects p to be in"),
        (lambda: tg.ones(2).random_(3, 3), RuntimeError, "expects 'from' to be less than 'to'"),
        (lambda: tg.ones(2).exponential_(0), RuntimeError, "expects lambda > 0.0"),
    ],
)  # fmt: skip
def test_refusals(act: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        act()


def test_a_refused_call_changes_nothing() -> None:
    kept = tg.ones(2)
    for act in (lambda: tg.zeros(2, out=kept, dtype=tg.int64), lambda: kept.fill_("a"),
                lambda: kept.__setitem__(0, "a"), lambda: tg.set_default_dtype(tg.int8),
                lambda: tg.set_printoptions(profile="tall", precision=9)):  # fmt: skip
        with pytest.raises((TypeError, RuntimeError, ValueError)):
            act()
    assert kept.tolist() == [1.0, 1.0] and kept._version == 0
    assert tg.get_default_dtype() is tg.float32 and tg.get_printoptions()["precision"] == 4


def test_random_fills_have_their_distributions() -> None:
    tg.manual_seed(1)
    x = tg.empty(4000)
    assert 0 <= float(x.uniform_(2, 3).min() - 2) and float(x.max()) < 3
    assert abs(float(x.exponential_(2.0).mean()) - 0.5) < 0.05 and float(x.min()) >= 0
    assert abs(float(x.bernoulli_(0.3).mean()) - 0.3) < 0.05
    assert set(x.random_(2, 5).tolist()) == {2.0, 3.0, 4.0}
    assert set(tg.empty(100, dtype=tg.bool).random_().tolist()) == {False, True}
    assert float(x.random_().max()) <= 2**24
    assert tg.rand_like(tg.ones(2, 3)).shape == (2, 3)
    assert tg.randint_like(tg.ones(3), 4, 5).tolist() == [4.0, 4.0, 4.0]
