"""nn.functional against NumPy formulas in float64, its gradients against slopes, its refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special

import tracegrad as tg
from tracegrad import nn
from tracegrad.nn import functional as F

RNG = np.random.default_rng(3)
X = RNG.standard_normal((4, 5))
IMAGES = RNG.standard_normal((2, 3, 6, 7))
KERNEL = RNG.standard_normal((4, 3, 3, 2))
BIAS = RNG.standard_normal(4)
LABELS = np.array([0, 4, 2, 4])
WEIGHT = np.array([0.5, 1.0, 0.1, 2.0, 3.0])
SOFT = RNG.dirichlet(np.ones(5), 4)


def conv2d(x, w, b, stride, low):
    """Four loops, straight from the definition."""
    x = np.pad(x, ((0, 0), (0, 0), (low, low), (low, low)))
    (n, _, h, v), (o, _, kh, kv) = x.shape, w.shape
    out = np.empty((n, o, (h - kh) // stride + 1, (v - kv) // stride + 1))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            patch = x[:, :, i * stride : i * stride + kh, j * stride : j * stride + kv]
            out[:, :, i, j] = np.einsum("nchv,ochv->no", patch, w) + b
    return out


def pool(x, reduce):
    n, c, h, v = x.shape
    blocks = x[:, :, : h // 2 * 2, : v // 2 * 2].reshape(n, c, h // 2, 2, v // 2, 2)
    return reduce(blocks, (3, 5))


def log_softmax(x):
    return x - scipy.special.logsumexp(x, 1, keepdims=True)


def nll(x, keep=None, weight=None):
    keep = np.ones(4, bool) if keep is None else keep
    w = np.ones(5) if weight is None else weight
    each = -log_softmax(x)[np.arange(4), LABELS] * w[LABELS] * keep
    return each.sum() / (w[LABELS] * keep).sum()


def layer_norm(x, w, b):
    m, v = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return (x - m) / np.sqrt(v + 1e-5) * w + b


def labels():
    return tg.tensor(LABELS)


ROWS = RNG.standard_normal(5)
CASES = {
    "linear": (lambda x, w, b: F.linear(x, w, b), lambda x, w, b: x @ w.T + b,
               [X, RNG.standard_normal((3, 5)), RNG.standard_normal(3)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1),
               lambda x, w, b: conv2d(x, w, b, 2, 1), [IMAGES, KERNEL, BIAS]),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), lambda x: pool(x, np.max), [IMAGES]),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), lambda x: pool(x, np.mean), [IMAGES]),
    "relu": (F.relu, lambda x: np.maximum(x, 0), [X]),
    "leaky_relu": (F.leaky_relu, lambda x: np.where(x > 0, x, 0.01 * x), [X]),
    "tanh": (F.tanh, np.tanh, [X]),
    "sigmoid": (F.sigmoid, scipy.special.expit, [X]),
    "silu": (F.silu, lambda x: x * scipy.special.expit(x), [X]),
    "softplus": (F.softplus, lambda x: np.logaddexp(0, x), [X]),
    "gelu": (F.gelu, lambda x: x * scipy.special.ndtr(x), [X]),
    "gelu tanh": (
        lambda x: F.gelu(x, "tanh"),
        lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), [X]),
    "softmax": (lambda x: F.softmax(x, 1), lambda x: scipy.special.softmax(x, 1), [X]),
    "log_softmax": (lambda x: F.log_softmax(x, 1), log_softmax, [X]),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b), layer_norm,
                   [X, ROWS, ROWS + 1]),
    "mse_loss": (F.mse_loss, lambda x, y: ((x - y) ** 2).mean(), [X, X[::-1].copy()]),
    "l1_loss": (F.l1_loss, lambda x, y: np.abs(x - y).mean(), [X, X[::-1].copy()]),
    "cross_entropy": (lambda x: F.cross_entropy(x, labels()), nll, [X]),
    "cross_entropy ignoring": (lambda x: F.cross_entropy(x, labels(), ignore_index=4),
                               lambda x: nll(x, LABELS != 4), [X]),
    "cross_entropy weighted": (
        lambda x, w: F.cross_entropy(x, labels(), w), lambda x, w: nll(x, None, w), [X, WEIGHT]),
    "cross_entropy soft": (lambda x, t: F.cross_entropy(x, t),
                           lambda x, t: -(log_softmax(x) * t).sum() / 4, [X, SOFT]),
    "cross_entropy smoothed": (
        lambda x: F.cross_entropy(x, labels(), label_smoothing=0.2),
        lambda x: 0.8 * nll(x) - 0.2 * log_softmax(x).mean(), [X]),
    "nll_loss": (lambda x: F.nll_loss(F.log_softmax(x, 1), labels()), nll, [X]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_function_is_its_formula(name):
    function, formula, arrays = CASES[name]
    out = function(*map(tg.tensor, arrays))
    # One rounding per operation on numbers near 1.
    np.testing.assert_allclose(out.numpy(), formula(*arrays), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_the_slope_of_the_formula(name):
    function, formula, arrays = CASES[name]
    leaves = [tg.tensor(a, requires_grad=True) for a in arrays]
    out = function(*leaves)
    ct = RNG.standard_normal(tuple(out.shape))
    out.backward(tg.tensor(ct))
    step = 1e-6  # truncation and cancellation are both near 1e-10
    for i, leaf in enumerate(leaves):
        dx = RNG.standard_normal(arrays[i].shape)
        sides = [
            formula(*(a + s * dx if i == j else a for j, a in enumerate(arrays)))
            for s in (step, -step)
        ]
        slope = np.sum(ct * (sides[0] - sides[1])) / (2 * step)
        np.testing.assert_allclose(np.sum(leaf.grad.numpy() * dx), slope, rtol=1e-6, atol=1e-7)


def test_softmax_and_cross_entropy_do_not_overflow():
    x = tg.tensor([[1000.0, 0.0, -1000.0]], requires_grad=True)
    loss = F.cross_entropy(x, tg.tensor([2]))
    loss.backward()
    assert loss.item() == 2000.0
    assert x.grad.tolist() == [[1.0, 0.0, -1.0]]
    assert F.softmax(x, 1).tolist() == [[1.0, 0.0, 0.0]]


def test_cross_entropy_over_nothing_is_nan():
    x = tg.zeros(2, 3, requires_grad=True)
    ignored = tg.tensor([-100, -100])
    assert math.isnan(F.cross_entropy(x, ignored).item())
    assert F.cross_entropy(x, ignored, reduction="sum").item() == 0


def test_pooling_gives_indices_and_the_gradient_goes_to_the_first_of_ties():
    x = tg.zeros(1, 1, 2, 2, requires_grad=True)
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    assert values.tolist() == [[[[0.0]]]] and indices.tolist() == [[[[0]]]]
    values.backward()
    assert x.grad.tolist() == [[[[1.0, 0.0], [0.0, 0.0]]]]


def test_layer_norm_of_halves_is_computed_in_float32():
    x = tg.tensor(X * 300).half()
    exact = layer_norm(x.numpy().astype(np.float64), 1.0, 0.0)
    out = F.layer_norm(x, (5,))
    assert out.dtype is tg.float16
    np.testing.assert_allclose(out.numpy(), exact, rtol=2**-11, atol=2**-11)  # one rounding


def test_dropout_keeps_the_mean_and_follows_the_seed():
    x = tg.ones(100, 100)
    tg.manual_seed(1)
    a = F.dropout(x, 0.25)
    tg.manual_seed(1)
    assert tg.equal(a, F.dropout(x, 0.25))
    assert set(np.unique(a.numpy())) == {np.float32(0), np.float32(1 / 0.75)}
    share = (a == 0).float().mean().item()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 10000)  # five standard deviations
    assert F.dropout(x, 1.0).sum().item() == 0
    assert F.dropout(x, 0.5, training=False) is x


def test_dropout_passes_gradients_where_it_passes_values():
    x = tg.ones(50, requires_grad=True)
    y = nn.Dropout(0.5)(x)
    y.sum().backward()
    assert tg.equal(x.grad, y.detach())
    assert nn.Dropout(0.5).eval()(x) is x


def test_one_hot():
    assert F.one_hot(tg.tensor([[2, 0]]), 3).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    assert F.one_hot(tg.tensor([1, 3])).shape == (2, 4)


def test_squared_error_of_other_shapes_warns():
    with pytest.warns(UserWarning, match="that is different to the input size .torch.Size"):
        F.mse_loss(tg.ones(3, 5), tg.ones(5))


def test_softmax_without_dim_warns():
    with pytest.warns(UserWarning, match="Implicit dimension choice for softmax"):
        assert F.softmax(tg.zeros(2, 3)).sum(1).tolist() == pytest.approx([1, 1])


def ones(*shape, dtype=tg.float32):
    return tg.ones(*shape, dtype=dtype)


ZEROS = tg.tensor([0, 0, 0, 0])
REFUSALS = [
    (lambda: F.cross_entropy(ones(3, 5), ZEROS), ValueError,
     "Expected input batch_size (3) to match target batch_size (4)."),
    (lambda: F.cross_entropy(ones(4, 5), ZEROS + 5), IndexError, "Target 5 is out of bounds."),
    (lambda: F.cross_entropy(ones(4, 5), ZEROS - 1), IndexError, "Target -1 is out of bounds."),
    (lambda: F.cross_entropy(ones(4, 5), ZEROS.float()), RuntimeError,
     "expected target dtype to be Long or Byte, but got Float"),
    (lambda: F.cross_entropy(ones(4, 5), ZEROS.int()), RuntimeError,
     "expected target dtype to be Long or Byte, but got Int"),
    (lambda: F.cross_entropy(ones(4, 5), tg.zeros(4, 5, dtype=tg.int64)), RuntimeError,
     "Expected floating point type for target with class probabilities, got Long"),
    (lambda: F.cross_entropy(ones(4, 5), ZEROS, ones(4)), RuntimeError,
     "weight tensor should be defined either for all 5 classes or no classes but got weight "
     "tensor of shape: [4]"),
    (lambda: F.cross_entropy(ones(4, 5), ZEROS, reduction="avg"), ValueError,
     "avg is not a valid value for reduction"),
    (lambda: F.cross_entropy(ones(4, 5), ZEROS, label_smoothing=1.5), RuntimeError,
     "label_smoothing must be between 0.0 and 1.0. Got: 1.5"),
    (lambda: F.cross_entropy(ones(4, 5), ones(4, 5), ignore_index=2), ValueError,
     "ignore_index is not supported for floating point target"),
    (lambda: F.cross_entropy(ones(4, 5, 2), ZEROS), RuntimeError,
     "Expected target size [4, 2], got [4]"),
    (lambda: F.nll_loss(ones(4, 5), ZEROS + 7), IndexError, "Target 7 is out of bounds."),
    (lambda: nn.NLLLoss(size_average=True), ValueError,
     "size_average and reduce are no longer used; pass reduction="),
    (lambda: F.mse_loss(ones(3), ones(3), "x"), ValueError,
     "x is not a valid value for reduction"),
    (lambda: F.conv2d(ones(2, 3), ones(2, 3, 3, 3)), RuntimeError,
     "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [2, 3]"),
    (lambda: F.conv2d(ones(1, 3, 4, 4), ones(2, 3, 3, 3), ones(3)), RuntimeError,
     "Given weight of size [2, 3, 3, 3], expected bias to be 1-dimensional with 2 elements, but "
     "got bias of size [3] instead"),
    (lambda: F.conv2d(ones(1, 3, 4, 4), ones(2, 3, 3, 3), padding="same", stride=2), RuntimeError,
     "padding='same' is not supported for strided convolutions"),
    (lambda: F.conv2d(ones(1, 3, 4, 4), ones(2, 3, 3, 3), padding="sam"), RuntimeError,
     "Invalid padding string: 'sam'"),
    (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "in_channels must be divisible by groups"),
    (lambda: nn.Conv2d(4, 3, 3, groups=2), ValueError, "out_channels must be divisible by groups"),
    (lambda: nn.Conv2d(4, 3, 3, groups=0), ValueError, "groups must be a positive integer"),
    (lambda: nn.Conv2d(4, 3, 3, padding="x"), ValueError,
     "Invalid padding string 'x', should be one of {'valid', 'same'}"),
    (lambda: nn.Conv2d(4, 3, 3, padding="same", stride=2), ValueError,
     "padding='same' is not supported for strided convolutions"),
    (lambda: F.linear(ones(3, 4), ones(2, 3)), RuntimeError,
     "mat1 and mat2 shapes cannot be multiplied (3x4 and 3x2)"),
    (lambda: F.linear([1], ones(2)), TypeError,
     "linear(): argument 'input' (position 1) must be Tensor, not list"),
    (lambda: F.max_pool2d(ones(3, 4), 2), RuntimeError,
     "non-empty 3D or 4D (batch mode) tensor expected for input"),
    (lambda: F.max_pool2d(ones(1, 1, 3, 4), 2, padding=2), RuntimeError,
     "pad should be at most half of effective kernel size, but got pad=2, kernel_size=2 and "
     "dilation=1"),
    (lambda: F.avg_pool2d(ones(1, 1, 3, 4), 2, divisor_override=0), RuntimeError,
     "divisor must be not zero"),
    (lambda: F.dropout(ones(3), 1.5), ValueError,
     "dropout probability has to be between 0 and 1, but got 1.5"),
    (lambda: nn.Dropout(-0.1), ValueError,
     "dropout probability has to be between 0 and 1, but got -0.1"),
    (lambda: F.layer_norm(ones(2, 5), [10]), RuntimeError,
     "Given normalized_shape=[10], expected input with shape [*, 10], but got input of "
     "size[2, 5]"),
    (lambda: F.layer_norm(ones(2, 5), 5), TypeError,
     "layer_norm(): argument 'normalized_shape' (position 2) must be tuple of ints, not int"),
    (lambda: F.layer_norm(ones(2, 5), [5], ones(4)), RuntimeError,
     "Expected weight to be of same shape as normalized_shape, but got weight of shape [4] and "
     "normalized_shape = [5]"),
    (lambda: F.one_hot(ones(2)), RuntimeError,
     "one_hot is only applicable to index tensor of type LongTensor."),
    (lambda: F.one_hot(tg.tensor([1, 2]), 2), RuntimeError,
     "Class values must be smaller than num_classes."),
    (lambda: F.one_hot(tg.tensor([-1, 2])), RuntimeError, "Class values must be non-negative."),
    (lambda: F.gelu(ones(3), approximate="x"), RuntimeError,
     "approximate argument must be either none or tanh."),
    *((lambda f=f: f(tg.tensor([1, 2])), NotImplementedError,
       f"\"{kernel}\" not implemented for 'Long'")
      for f, kernel in ((F.gelu, "GeluKernelImpl"), (F.leaky_relu, "leaky_relu_cpu"),
                        (F.silu, "silu_cpu"), (F.softplus, "softplus_cpu"))),
    (lambda: F.mse_loss(tg.tensor([1]), tg.tensor([2])), NotImplementedError,
     "\"mse_cpu\" not implemented for 'Long'"),
    (lambda: F.relu([1]), TypeError,
     "relu(): argument 'input' (position 1) must be Tensor, not list"),
    (lambda: nn.init.kaiming_uniform_(ones(3)), ValueError,
     "Fan in and fan out can not be computed for tensor with fewer than 2 dimensions"),
    (lambda: nn.init.kaiming_uniform_(ones(3, 3), mode="x"), ValueError,
     "Mode x not supported, please use one of ['fan_in', 'fan_out']"),
    (lambda: nn.init.calculate_gain("x"), ValueError, "Unsupported nonlinearity x"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "text"), REFUSALS, ids=[r[2][:50] for r in REFUSALS])
def test_refusals_say_what_pytorch_says(act, error, text):
    with pytest.raises(error) as caught:
        act()
    assert str(caught.value) == text


@pytest.mark.parametrize(("layer", "fan_in"), [
    (lambda: nn.Linear(50, 400), 50),
    (lambda: nn.Conv2d(8, 300, 5, groups=2), 100),
    (lambda: nn.Conv1d(8, 300, 5), 40),
])  # fmt: skip
def test_first_weights_are_uniform_within_the_inverse_root_of_fan_in(layer, fan_in):
    tg.manual_seed(0)
    made = layer()
    bound = 1 / math.sqrt(fan_in)
    for p in (made.weight, made.bias):
        values = p.detach().numpy()
        assert np.abs(values).max() <= bound
        error = 6 * bound / math.sqrt(3 * values.size)  # six standard deviations of the mean
        assert abs(values.mean()) < error
    assert abs(made.weight.detach().numpy().std() - bound / math.sqrt(3)) < 0.03 * bound


def test_initial_values():
    tg.manual_seed(0)
    w = tg.empty(200, 300, requires_grad=True)
    init = nn.init
    for fill, std in (
        (init.xavier_uniform_, math.sqrt(2 / 500)), (init.xavier_normal_, math.sqrt(2 / 500)),
        (init.kaiming_normal_, math.sqrt(2 / 300)),
        (lambda w: init.kaiming_uniform_(w, mode="fan_out"), math.sqrt(2 / 200)),
        (lambda w: init.normal_(w, 0, 3), 3), (lambda w: init.uniform_(w, -1, 1), 3**-0.5),
    ):  # fmt: skip
        assert fill(w) is w and w.is_leaf
        assert w.std().item() == pytest.approx(std, rel=0.02)  # 60,000 draws: 0.3 %
    assert (init.constant_(w, 2) == 2).all() and (init.zeros_(w) == 0).all()
    assert (init.ones_(w) == 1).all()
    with pytest.warns(UserWarning, match="Initializing zero-element tensors is a no-op"):
        nn.Linear(0, 3)


def test_convolution_of_no_channels_is_the_bias_and_its_gradients_are_empty() -> None:
    x = tg.ones(2, 0, 5, 5, requires_grad=True)
    w = tg.ones(3, 0, 2, 2, requires_grad=True)
    bias = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    out = F.conv2d(x, w, bias, padding=1)
    assert out.tolist() == bias.view(1, 3, 1, 1).expand(2, 3, 6, 6).tolist()
    out.sum().backward()
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)
    assert bias.grad.tolist() == [72.0, 72.0, 72.0]


def test_a_bias_of_another_dtype_is_refused() -> None:
    """As by PyTorch, before anything is computed."""
    x, w = tg.ones(1, 1, 3, 3), tg.ones(1, 1, 2, 2)
    with pytest.raises(
        RuntimeError, match=r"Input type \(float\) and bias type \(double\) should be the same"
    ):
        F.conv2d(x, w, tg.ones(1).double())
