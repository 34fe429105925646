"""The tutorial's figures, held without its text: what each chapter prints, eagerly and compiled.

Behaviour mirrored: PyTorch 2 on the CPU. `tests/eager/test_seed_figures.py` has the details of
printing and of the tape; here every chapter is one function that a test runs as it is and compiled.
"""

from __future__ import annotations

import inspect
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import tracegrad as torch

Run = Callable[[Callable[..., Any]], Callable[..., Any]]


def replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled; each call is made three times, so that the result is a replay's."""
    made = torch.compile(function)

    def call(*args: Any) -> Any:
        made(*args)
        made(*args)
        return made(*args)

    call.compiled = made  # type: ignore[attr-defined]
    return call


@pytest.fixture(params=["eager", "compiled"])
def run(request: pytest.FixtureRequest) -> Run:
    return replayed if request.param == "compiled" else (lambda function: function)


def node_name(run: Run, eager: str) -> str:
    """The name of the node that made a result: a compiled call is one node of the graph."""
    return "CompiledBackward0" if run is replayed else eager


def angles() -> torch.Tensor:
    return torch.linspace(0.0, 2.0 * math.pi, steps=25, requires_grad=True)


def figures(x: torch.Tensor) -> list[str]:
    text = repr(x)
    return [word.strip() for word in text[text.index("[") + 1 : text.rindex("]")].split(",")]


# Each column below is one of the five tensors at k * pi / 12 for k = 0 ... 24, as printed.
A = """0.0000 0.2618 0.5236 0.7854 1.0472 1.3090 1.5708 1.8326 2.0944 2.3562 2.6180 2.8798 3.1416
       3.4034 3.6652 3.9270 4.1888 4.4506 4.7124 4.9742 5.2360 5.4978 5.7596 6.0214 6.2832"""
B = """0.0000e+00 2.5882e-01 5.0000e-01 7.0711e-01 8.6603e-01 9.6593e-01 1.0000e+00 9.6593e-01
       8.6603e-01 7.0711e-01 5.0000e-01 2.5882e-01 -8.7423e-08 -2.5882e-01 -5.0000e-01 -7.0711e-01
       -8.6603e-01 -9.6593e-01 -1.0000e+00 -9.6593e-01 -8.6603e-01 -7.0711e-01 -5.0000e-01
       -2.5882e-01 1.7485e-07"""
C = """0.0000e+00 5.1764e-01 1.0000e+00 1.4142e+00 1.7321e+00 1.9319e+00 2.0000e+00 1.9319e+00
       1.7321e+00 1.4142e+00 1.0000e+00 5.1764e-01 -1.7485e-07 -5.1764e-01 -1.0000e+00 -1.4142e+00
       -1.7321e+00 -1.9319e+00 -2.0000e+00 -1.9319e+00 -1.7321e+00 -1.4142e+00 -1.0000e+00
       -5.1764e-01 3.4969e-07"""
D = """1.0000e+00 1.5176e+00 2.0000e+00 2.4142e+00 2.7321e+00 2.9319e+00 3.0000e+00 2.9319e+00
       2.7321e+00 2.4142e+00 2.0000e+00 1.5176e+00 1.0000e+00 4.8236e-01 -3.5763e-07 -4.1421e-01
       -7.3205e-01 -9.3185e-01 -1.0000e+00 -9.3185e-01 -7.3205e-01 -4.1421e-01 4.7684e-07
       4.8236e-01 1.0000e+00"""
GRADIENT = """2.0000e+00 1.9319e+00 1.7321e+00 1.4142e+00 1.0000e+00 5.1764e-01 -8.7423e-08
       -5.1764e-01 -1.0000e+00 -1.4142e+00 -1.7321e+00 -1.9319e+00 -2.0000e+00 -1.9319e+00
       -1.7321e+00 -1.4142e+00 -1.0000e+00 -5.1764e-01 2.3850e-08 5.1764e-01 1.0000e+00 1.4142e+00
       1.7321e+00 1.9319e+00 2.0000e+00"""


def test_all_25_values_of_the_wave(run: Run) -> None:
    @run
    def wave(a):
        b = torch.sin(a)
        c = 2 * b
        d = c + 1
        return b, c, d, d.sum()

    a = angles()
    b, c, d, out = wave(a)
    assert figures(a) == A.split()
    assert (figures(b), figures(c), figures(d)) == (B.split(), C.split(), D.split())
    assert repr(out) == f"tensor(25., grad_fn=<{node_name(run, 'SumBackward0')}>)"
    out.backward()
    assert figures(a.grad) == GRADIENT.split()
    if run is replayed:
        assert wave.compiled.cache_info().hits == 2


LONG_VECTOR = """\
tensor([ 0.0000e+00,  2.5882e-01,  5.0000e-01,  7.0711e-01,  8.6603e-01,
         9.6593e-01,  1.0000e+00,  9.6593e-01,  8.6603e-01,  7.0711e-01,
         5.0000e-01,  2.5882e-01, -8.7423e-08, -2.5882e-01, -5.0000e-01,
        -7.0711e-01, -8.6603e-01, -9.6593e-01, -1.0000e+00, -9.6593e-01,
        -8.6603e-01, -7.0711e-01, -5.0000e-01, -2.5882e-01,  1.7485e-07],
       grad_fn=<{}>)"""


def test_printed_form_of_a_long_vector(run: Run) -> None:
    assert repr(run(torch.sin)(angles())) == LONG_VECTOR.format(node_name(run, "SinBackward0"))


def test_walk_from_the_sum_to_the_leaf(run: Run) -> None:
    @run
    def total(x):
        return (2 * torch.sin(x) + 1).sum()

    a = angles()
    node = total(a).grad_fn
    names = [node.name()]
    while node.next_functions:
        (node, _), *scalars = node.next_functions
        assert scalars in ([], [(None, 0)])
        names.append(node.name())
    names[-1] = names[-1].removeprefix("torch::autograd::")
    operations = ["SumBackward0", "AddBackward0", "MulBackward0", "SinBackward0"]
    assert names[:-1] == (["CompiledBackward0"] if run is replayed else operations)
    assert names[-1] == "AccumulateGrad"
    assert node.variable is a and a.grad_fn is None


def test_gradient_of_a_non_leaf_warns_with_the_whole_text(run: Run) -> None:
    c = run(lambda x: 2 * x)(angles())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert c.grad is None
    (warning,) = caught
    assert warning.category is UserWarning and str(warning.message).split(". ") == [
        "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
        "Its .grad attribute won't be populated during autograd.backward()",
        "If you indeed want the .grad field to be populated for a non-leaf Tensor, use "
        ".retain_grad() on the non-leaf Tensor",
        "If you access the non-leaf Tensor by mistake, make sure you access the leaf Tensor "
        "instead",
        "See github.com/pytorch/pytorch/pull/30531 for more informations.",
    ]


def model_and_data() -> tuple[Any, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(1000, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
    )
    return model, torch.randn(16, 1000), torch.randn(16, 10)


@pytest.mark.parametrize("compiled", [False, True])
def test_training_changes_weights_and_accumulates_gradients(compiled: bool) -> None:
    model, data, ideal = model_and_data()
    call = torch.compile(model) if compiled else model
    weight = model[2].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    assert weight.grad is None
    before = weight.detach().clone()
    assert repr(weight[0][0:10]).endswith("grad_fn=<SliceBackward0>)")
    loss = (ideal - call(data)).pow(2).sum()
    assert repr(loss).endswith("grad_fn=<SumBackward0>)") and 100 < loss.item() < 300
    loss.backward()
    first = weight.grad.detach().clone()
    assert torch.equal(weight.detach(), before)  # backward leaves weights alone
    optimizer.step()
    moved = before - 0.001 * first
    assert (weight.detach() - moved).abs().max().item() < 1e-7
    assert torch.equal(weight.grad, first)  # the step leaves gradients alone
    for _ in range(5):
        (ideal - call(data)).pow(2).sum().backward()
    total = weight.grad.detach().clone()
    optimizer.zero_grad(set_to_none=False)
    assert repr(weight.grad[0][0:10]) == "tensor([0., 0., 0., 0., 0., 0., 0., 0., 0., 0.])"
    (ideal - call(data)).pow(2).sum().backward()
    # five equal steps: each adds the same gradient, the first pass's stays in the sum
    expected = first + 5 * weight.grad
    assert (total - expected).abs().max().item() < 1e-4


def test_zero_grad_leaves_zeros_by_default() -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    torch.optim.SGD([weight], lr=0.1).zero_grad()
    assert repr(weight.grad) == "tensor([0., 0.])"


def test_switching_the_flag_of_a_leaf(run: Run) -> None:
    @run
    def twice(x):
        return 2 * x

    a = torch.ones(2, 3, requires_grad=True)
    ones = "[[1., 1., 1.],\n        [1., 1., 1.]]"
    assert repr(a) == f"tensor({ones}, requires_grad=True)"
    twos = ones.replace("1", "2")
    assert repr(twice(a)) == f"tensor({twos}, grad_fn=<{node_name(run, 'MulBackward0')}>)"
    a.requires_grad = False
    assert repr(twice(a)) == f"tensor({twos})"
    b = twice(torch.ones(1, requires_grad=True))
    with pytest.raises(RuntimeError) as caught:
        b.requires_grad = False
    assert str(caught.value) == (
        "you can only change requires_grad flags of leaf variables. If you want to use a computed "
        "variable in a subgraph that doesn't require differentiation use var_no_grad = "
        "var.detach()."
    )


def test_no_grad_as_block_and_decorator(run: Run) -> None:
    @run
    @torch.no_grad()
    def untracked(x, y):
        return x + y

    @run
    def block(x, y):
        with torch.no_grad():
            return x + y

    @run
    def product(x, y):
        return x * y

    a = torch.ones(2, 3, requires_grad=True) * 2
    b = torch.ones(2, 3, requires_grad=True) * 3
    fives = "tensor([[5., 5., 5.],\n        [5., 5., 5.]])"
    assert repr(untracked(a, b)) == repr(block(a, b)) == fives
    sixes = fives.replace("5", "6")[:-1]
    assert repr(product(a, b)) == f"{sixes}, grad_fn=<{node_name(run, 'MulBackward0')}>)"
    with torch.no_grad():
        with torch.enable_grad():
            assert product(a, b).requires_grad
        assert not product(a, b).requires_grad


@pytest.mark.filterwarnings("ignore::tracegrad.EagerWarning")  # a view of an argument is eager
def test_detached_tensor_shares_memory_without_history(run: Run) -> None:
    x = torch.rand(5, requires_grad=True)
    y = run(lambda x: x.detach())(x)
    assert repr(x) == repr(y)[:-1] + ", requires_grad=True)"
    y[0] = 9.0
    assert x[0].item() == 9.0


def test_detached_result_has_no_history(run: Run) -> None:
    @run
    def detached(x):
        return (2 * x).detach()

    y = detached(torch.ones(3, requires_grad=True))
    assert repr(y) == "tensor([2., 2., 2.])" and y.grad_fn is None
    if run is replayed:
        assert detached.compiled.cache_info().hits == 2


def test_in_place_operation_on_a_leaf_is_refused(run: Run) -> None:
    for change in (torch.sin_, torch.Tensor.sin_):
        changed = run(change)
        assert changed(torch.ones(25)).shape == (25,)  # what takes no gradient may be written to
        a = angles()
        for _ in range(2):
            with pytest.raises(RuntimeError) as caught:
                changed(a)
            assert str(caught.value) == (
                "a leaf Variable that requires grad is being used in an in-place operation."
            )
        assert figures(a) == A.split()  # nothing was written
        with pytest.raises(RuntimeError) as caught:
            changed(a[3:5])
        assert str(caught.value) == (
            "a view of a leaf Variable that requires grad is being used in an in-place operation."
        )


def overwritten(whose: str, line: int) -> str:
    """The whole message on 25 saved values that `c.mul_(2)` changed in a line of this file."""
    return (
        "one of the variables needed for gradient computation has been modified by an inplace "
        f"operation: [torch.FloatTensor [25]]{whose} is at version 1; expected version 0 instead. "
        "Hint: enable anomaly detection to find the operation that failed to compute its gradient, "
        "with torch.autograd.set_detect_anomaly(True). It was modified by mul_ at "
        f"test_figures.py:{line} (c.mul_(2)); clone() it before, or use mul."
    )


# Eagerly only: the gradient of a replay is computed from its arguments and from values of its own,
# not from the result that it hands out. Writing to that is no mistake there: the gradient is right.
def test_overwritten_saved_result_is_reported() -> None:
    b = torch.sin(angles())
    c = b.exp()
    line = inspect.currentframe().f_lineno + 1
    c.mul_(2)
    with pytest.raises(RuntimeError) as caught:
        c.sum().backward()
    assert str(caught.value) == overwritten(", which is output 0 of ExpBackward0,", line)


def test_overwritten_saved_argument_is_reported(run: Run) -> None:
    c = 2 * angles()
    out = run(lambda x: torch.sin(x).sum())(c)
    line = inspect.currentframe().f_lineno + 1
    c.mul_(2)
    with pytest.raises(RuntimeError) as caught:
        out.backward()
    assert str(caught.value) == overwritten(", which is output 0 of MulBackward0,", line)


TIME = r"\d+\.\d{3}(us|ms|s)"
FOOTNOTE = """\
(est.): part of one measured call of a compiled function. Its kernels share the time as they did in
a rehearsal, timed one by one; the operations in a kernel share its time by the cost model."""


def test_profiler_table_of_a_loop(run: Run) -> None:
    @run
    def step(z, x, y):
        return (z / x) * y

    x, y, z = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3), torch.ones(2, 3)
    z = step(step(z, x, y), x, y)  # all that is compiled is compiled here
    with torch.autograd.profiler.profile(use_cuda=False) as prof:
        for _ in range(50):
            z = step(z, x, y)
    rows_of, calls, end = ["aten::div", "aten::mul"], "50", []
    if run is replayed:  # three calls each, and how the time of a call is divided
        rows_of = ["step", "step: kernel_0", "aten::div (est.)", "aten::mul (est.)"]
        calls, end = "150", FOOTNOTE.splitlines()
    text = prof.key_averages().table(sort_by="self_cpu_time_total")
    rule, titles, *lines = text.splitlines()
    rows, tail = lines[1 : 1 + len(rows_of)], lines[1 + len(rows_of) :]
    assert re.split("  +", titles.strip()) == [
        "Name", "Self CPU %", "Self CPU", "CPU total %", "CPU total", "CPU time avg", "# of Calls",
    ]  # fmt: skip
    name_width = max(map(len, rows_of)) + 4
    assert rule == lines[0] == tail[0] == "  ".join(["-" * name_width] + ["-" * 12] * 6) + "  "
    assert re.fullmatch(f"Self CPU time total: {TIME}", tail[1]) and tail[2:] == end
    assert text.endswith("\n") and not text.endswith("\n\n")
    cells = [re.split("  +", row.strip()) for row in rows]
    assert {name: last for name, *_, last in cells} == dict.fromkeys(rows_of, calls)
    for row, (_, share, self_time, total_share, total, average, _) in zip(rows, cells, strict=True):
        assert len(row) == len(rule)
        assert all(re.fullmatch(r"\d+\.\d\d%", x) for x in (share, total_share)), row
        assert all(re.fullmatch(TIME, x) for x in (self_time, total, average)), row
    shares = [float(share.rstrip("%")) for _, share, *_ in cells]
    assert shares == sorted(shares, reverse=True) and abs(sum(shares) - 100) < 0.03


def doubled(x):
    y = x * 2
    while y.data.norm() < 1000:
        y = y * 2
    return y


SEED_OF_DOUBLING = [0.1, 1.0, 0.0001]


@pytest.mark.filterwarnings("ignore::tracegrad.EagerWarning")
def test_doubling_loop_has_gradients_of_powers_of_two(run: Run) -> None:
    x = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    y = run(doubled)(x)
    with pytest.raises(RuntimeError) as caught:
        y.backward()
    assert str(caught.value) == "grad can be implicitly created only for scalar outputs"
    y.backward(torch.tensor(SEED_OF_DOUBLING, dtype=torch.float))
    assert repr(x.grad) == "tensor([4.0960e+02, 4.0960e+03, 4.0960e-01])"


def test_wrong_cotangents_are_refused(run: Run) -> None:
    y = run(lambda x: x * 2)(torch.ones(3, requires_grad=True))
    with pytest.raises(RuntimeError) as caught:
        y.backward(torch.ones(2))
    assert str(caught.value) == (
        "Mismatch in shape: grad_output[0] has a shape of torch.Size([2]) and output[0] has a "
        "shape of torch.Size([3])."
    )
    with pytest.raises(TypeError, match="^gradients can be either Tensors or None, but got int$"):
        y.backward(1)


def test_jacobian_of_two_inputs(run: Run) -> None:
    @run
    def exp_adder(x, y):
        return 2 * x.exp() + 3 * y

    inputs = (torch.tensor([math.log(1.5)]), torch.tensor([0.4]))
    shown = repr(torch.autograd.functional.jacobian(exp_adder, inputs))
    assert shown == "(tensor([[3.]]), tensor([[3.]]))"
    inputs = (torch.tensor([0.0642, 0.1508, 0.3020]), torch.tensor([0.0760, 0.8969, 0.6902]))
    by_x, by_y = torch.autograd.functional.jacobian(exp_adder, inputs)
    diagonal = ["2.1326", "2.3255", "2.7051"]
    expected = [["0.0000"] * 3 for _ in range(3)]
    for k in range(3):
        expected[k][k] = diagonal[k]
    rows = ",\n        ".join("[" + ", ".join(row) + "]" for row in expected)
    assert repr(by_x) == f"tensor([{rows}])"
    assert repr(by_y) == "tensor([[3., 0., 0.],\n        [0., 3., 0.],\n        [0., 0., 3.]])"


@pytest.mark.filterwarnings("ignore::tracegrad.EagerWarning")
def test_vector_jacobian_product_of_the_loop(run: Run) -> None:
    inputs = torch.tensor([0.3, -0.2, 0.1])
    result, product = torch.autograd.functional.vjp(
        run(doubled), inputs, v=torch.tensor(SEED_OF_DOUBLING)
    )
    assert repr(result) == "tensor([1228.8000, -819.2000,  409.6000])"
    assert repr(product) == "tensor([4.0960e+02, 4.0960e+03, 4.0960e-01])"
