"""The tensor beside Python, NumPy and other libraries: copies that share, storages, bits, devices."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import tracegrad as tg


@pytest.mark.parametrize("twins", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_views_share_memory_like_the_views(twins: Any) -> None:
    x = tg.arange(6.0).reshape(2, 3)
    a, row, column, turned = twins([x, x[0], x[:, 1], x.t()])
    assert column.stride() == (3,) and turned.stride() == (1, 3)
    row[1] = 9
    assert a.tolist() == [[0.0, 9.0, 2.0], [3.0, 4.0, 5.0]]
    assert column[0].item() == turned[1, 0].item() == 9
    assert x[0, 1].item() == 1


def test_deepcopy_of_what_detach_and_data_share() -> None:
    x = tg.arange(6.0).reshape(2, 3).requires_grad_()
    a, b, c = copy.deepcopy([x, x.detach()[1], x.data])
    b[0] = 9
    c[0, 0] = 7
    assert a.tolist() == [[7.0, 1.0, 2.0], [9.0, 4.0, 5.0]] and a.requires_grad
    assert x.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_keeps_dtype_strides_and_requires_grad(protocol: int) -> None:
    cases = [tg.zeros(0, 3), tg.tensor(2.5), tg.ones(2, 3).t(), tg.ones(3).expand(2, 3),
             tg.from_numpy(np.arange(10.0)[::3]), tg.ones(2, dtype=tg.bfloat16, requires_grad=True),
             tg.tensor([True])]  # fmt: skip
    for x in cases:
        y = pickle.loads(pickle.dumps(x, protocol))
        assert y.dtype is x.dtype and y.shape == x.shape and y.tolist() == x.tolist()
        assert y.requires_grad is x.requires_grad and y.is_leaf
        if x.numel() and x.stride() != (3,):
            assert y.stride() == x.stride()
    result = pickle.loads(pickle.dumps(tg.ones(2, requires_grad=True) * 2, protocol))
    assert result.is_leaf and result.requires_grad, "PyTorch: a result comes back as a leaf"


def test_shallow_copy_shares_memory() -> None:
    x = tg.ones(2)
    twin = copy.copy(x)
    twin[0] = 5
    assert twin is not x and x.tolist() == [5.0, 1.0]


@pytest.mark.parametrize(
    "thing",
    [
        tg.Size([2, 3]),
        tg.device("cuda:1"),
        tg.float16,
        tg.complex64,
        tg.strided,
        tg.preserve_format,
    ],
    ids=str,
)
def test_constants_and_shapes_survive_pickle_and_deepcopy(thing: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(thing)), copy.deepcopy(thing), copy.copy(thing)):
        assert twin == thing and type(twin) is type(thing)


def test_generator_survives_pickle_where_it_stands() -> None:
    g = tg.Generator().manual_seed(3)
    tg.rand(2, generator=g)
    twins = pickle.loads(pickle.dumps(g)), copy.deepcopy(g), g.clone_state()
    drawn = tg.rand(3, generator=g)
    for twin in twins:
        assert tg.equal(tg.rand(3, generator=twin), drawn)


def test_fork_rng_puts_the_generator_back() -> None:
    state = tg.get_rng_state()
    with tg.random.fork_rng():
        tg.rand(3)
        tg.manual_seed(5)
    assert tg.equal(tg.get_rng_state(), state) and state.dtype is tg.uint8


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda g: g.manual_seed("a"), RuntimeError, "manual_seed expected a long, but got str"),
        (lambda g: g.manual_seed(2**64), ValueError, "Overflow when unpacking long long"),
        (lambda g: g.set_state(3), TypeError, "expected a torch.ByteTensor, but got int"),
        (lambda g: g.set_state(tg.zeros(16)), TypeError, "must be a torch.ByteTensor"),
        (lambda g: g.set_state(tg.zeros(2, dtype=tg.uint8)), RuntimeError, "a state of 16 bytes"),
        (lambda g: tg.rand(1, generator=3), TypeError, "expected a Generator, but got int"),
        (lambda g: tg.manual_seed("a"), ValueError, "invalid literal for int"),
    ],
)
def test_generator_refusals(act: Any, error: type[Exception], text: str) -> None:
    g = tg.Generator().manual_seed(4)
    with pytest.raises(error, match=text):
        act(g)
    assert g.initial_seed() == 4


def test_memory_goes_both_ways_through_dlpack() -> None:
    x = tg.arange(6.0).reshape(2, 3)
    array = np.from_dlpack(x.t())
    x[0, 1] = 9
    assert array[1, 0] == 9 and array.shape == (3, 2)
    back = tg.from_dlpack(tg.utils.dlpack.to_dlpack(x))
    back[0, 0] = 7
    assert x[0, 0].item() == 7
    assert tg.from_dlpack(x, copy=True)[0, 0].item() == 7 and x.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="Can't export tensors that require gradient"):
        np.from_dlpack(tg.ones(1, requires_grad=True))
    with pytest.raises(BufferError, match="torch.bfloat16 tensor"):
        np.from_dlpack(tg.ones(1, dtype=tg.bfloat16))


def test_numpy_functions_of_tensors_give_tensors() -> None:
    """PyTorch's `__array_wrap__`; bools become uint8 there too."""
    x = tg.tensor([0.0, 1.0])
    for out in (np.exp(x), np.add(x, 1), np.add(np.ones(2, np.float32), x)):
        assert isinstance(out, tg.Tensor) and out.dtype is tg.float32
    assert np.isnan(x).dtype is tg.uint8 and type(np.asarray(x)) is np.ndarray
    with pytest.raises(RuntimeError, match="Can't call numpy.. on Tensor that requires grad"):
        np.exp(tg.ones(1, requires_grad=True))
    with pytest.raises(ValueError, match="Unable to avoid copy"):
        np.asarray(x, dtype=np.int64, copy=False)


def test_storages_show_all_of_the_memory() -> None:
    x = tg.arange(6, dtype=tg.int16).reshape(2, 3)
    bytes_ = x[1].untyped_storage()
    assert bytes_.nbytes() == len(bytes_) == 12 and bytes_.data_ptr() == x.data_ptr()
    assert bytes_.tolist()[2] == 1 and bytes_[2] == 1 and tg.is_storage(bytes_)
    with pytest.warns(UserWarning, match="TypedStorage is deprecated"):
        numbers = x[:, 1].storage()
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5] and numbers.untyped().size() == 12
    assert repr(numbers[:2]) == (
        " 0\n 1\n[torch.storage.TypedStorage(dtype=torch.int16, device=cpu) of size 2]"
    )
    with pytest.raises(IndexError, match="out of range for storage of size 12"):
        bytes_[12]


def test_view_of_bits_shares_memory() -> None:
    x = tg.ones(2, 4)
    bits = x.view(tg.int32)
    bits[0, 0] = 0
    assert x[0, 0].item() == 0 and x._version == 1 and not bits.requires_grad
    assert x.view(tg.int16).shape == (2, 8) and x.view(tg.float64).shape == (2, 2)
    assert not x.clone().requires_grad_().view(tg.int32).requires_grad
    for act, text in ((lambda: tg.ones(3).view(tg.int64), r"self.size\(-1\) must be divisible by 2"),
                      (lambda: x.t().view(tg.int64), r"self.stride\(-1\) must be 1"),
                      (lambda: tg.tensor(1.0).view(tg.int64), "self.dim.. cannot be 0")):  # fmt: skip
        with pytest.raises(RuntimeError, match=text):
            act()


def test_advanced_indexing_gives_a_row_major_copy() -> None:
    """So `view` of a result works, as in PyTorch, and writes to it leave the source alone."""
    x = tg.arange(24.0).reshape(2, 3, 4).requires_grad_()
    y = x[:, [0, 2]]
    assert y.is_contiguous() and not y._is_view() and y.view(-1).shape == (16,)
    assert y.grad_fn.name() == "IndexBackward0"
    with tg.no_grad():
        y.zero_()
    assert x.sum().item() == 276


def test_apply_calls_python_on_each_element() -> None:
    x = tg.arange(4.0).reshape(2, 2).t()
    assert x.apply_(lambda v: v * 2) is x and x.tolist() == [[0.0, 4.0], [2.0, 6.0]]
    with pytest.raises(RuntimeError, match="Can't call apply_.. on Variable that requires grad"):
        tg.ones(1, requires_grad=True).apply_(abs)
    with pytest.raises(TypeError, match="not callable"):
        x.apply_(3)


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda x: x.cuda(), RuntimeError, "device cuda is not available"),
        (lambda x: x.pin_memory(), RuntimeError, "Cannot access accelerator device"),
        (lambda x: x.to(object()), TypeError, r"invalid combination of arguments - got \(object\)"),
        (lambda x: x.to(tg.float64, "cpu"), TypeError, r"got \(torch.dtype, str\)"),
        (lambda x: x.to("nowhere"), RuntimeError, "Expected one of cpu, cuda, ipu"),
        (lambda x: x.to("meta"), RuntimeError, "device meta is not available"),
        (lambda x: x.type("foo"), ValueError, "invalid type: 'foo'"),
        (lambda x: x.type_as(3), TypeError, "type_as.*must be Tensor, not int"),
        (lambda x: x.size("a"), TypeError, "'dim' .position 1. must be int, not str"),
        (lambda x: x.imag, RuntimeError, "imag is not implemented for tensors with non-complex"),
        (lambda x: x[0].H, RuntimeError, "only supported on matrices .2-D tensors.. Got 1-D"),
        (lambda x: x[0].mH, RuntimeError, "tensor.mH is only supported on matrices"),
        (lambda x: x.is_same_size(3), TypeError, "must be Tensor, not int"),
        (lambda x: x.is_set_to(3), TypeError, "must be Tensor, not int"),
        (lambda x: tg.is_complex(3), TypeError, "is_complex.*must be Tensor, not int"),
        (lambda x: tg.is_nonzero(x), RuntimeError, "more than one value is ambiguous"),
        (lambda x: tg.isclose(x, x, atol=-1), RuntimeError, "atol must be greater than or equal"),
        (lambda x: tg.allclose(x, x.double()), RuntimeError, "Float did not match Double"),
        (lambda x: tg.set_default_device("cuda"), RuntimeError, "device cuda is not available"),
        (lambda x: tg.set_default_tensor_type(3), TypeError, "invalid type object"),
        (lambda x: tg.finfo(tg.int8), TypeError, "requires a floating point input type"),
        (lambda x: tg.iinfo(tg.float32), TypeError, "requires an integer input type"),
        (lambda x: tg.set_printoptions(profile="tall"), ValueError, "default, short, full"),
        (lambda x: tg.set_printoptions(edgeitems=-1), ValueError, "edgeitems must not be negative"),
        (lambda x: int(x), ValueError, "only one element tensors can be converted"),
        (lambda x: x.__delitem__(0), TypeError, "does not support deleting items"),
        (lambda x: None in x, RuntimeError, "you passed in a <class 'NoneType'>"),
        (lambda x: ~x, TypeError, "operator.invert. is only implemented on integer and Boolean"),
        (lambda x: +(x > 0), RuntimeError, "The `.` operator, on a bool tensor is not supported"),
        (lambda x: tg.int8.to_complex(), RuntimeError, "Unknown Complex ScalarType for Char"),
    ],
)  # fmt: skip
def test_refusals(act: Any, error: type[Exception], text: str) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=text):
            act(tg.ones(2, 3))


def test_default_device_is_the_cpu() -> None:
    tg.set_default_device("cpu")
    assert tg.get_default_device() == tg.device("cpu") == tg.ones(1).device
    with tg.device("cpu"):
        assert tg.ones(1).device.type == "cpu"
    with pytest.raises(RuntimeError, match="not available"), tg.device("cuda"):
        pass


def test_old_constructors_know_their_tensors() -> None:
    assert tg.Tensor(2, 3).shape == (2, 3) and tg.Tensor([2, 3]).tolist() == [2.0, 3.0]
    assert tg.LongTensor([1.7, 2]).tolist() == [1, 2]
    x = tg.ones(1)
    assert isinstance(x, tg.FloatTensor) and not isinstance(x, tg.DoubleTensor)
    assert x.type(tg.DoubleTensor).dtype is tg.float64 and tg.typename(x) == x.type()


def test_compiled_functions_may_make_and_convert_tensors() -> None:
    def f(x: Any) -> Any:
        made = tg.full_like(x, 2) + tg.arange(3.0) + x.new_ones(3) + tg.linspace(0, 1, 3)
        return (x * made).to(tg.float32, copy=True)[[0, 2]], tg.add(x, made, alpha=2)

    compiled = tg.compile(f)
    for _ in range(3):
        x = tg.randn(3)
        for got, want in zip(compiled(x), f(x), strict=True):
            assert tg.allclose(got, want)
    assert compiled.cache_info().traces == 1 and compiled.cache_info().eager_calls == 0


def test_a_leaf_that_requires_grad_is_not_exported() -> None:
    """PyTorch: BufferError; writes to the copy would reach the leaf unseen."""
    leaf = tg.ones(2, requires_grad=True)
    with pytest.raises(BufferError, match="Can't export tensors that require gradient"):
        tg.from_dlpack(leaf)
