"""What the functions of `tracegrad.autograd.functional` share: inputs, vectors, strict mode.

Every check has PyTorch's class and text. The texts of strict mode are the constants below; a
`Stage` pairs the text for "no gradient at all" with that for "a gradient that is constant".
Start reading at `as_tensors`, then `gradients`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tracegrad.ir.errors import GradientError, OperandError, ShapeError
from tracegrad.tracer.engine import grad
from tracegrad.tracer.factories import zeros_like
from tracegrad.tracer.shapes import view_as
from tracegrad.tracer.tensor import Tensor, alias

Tensors = tuple[Tensor, ...]
Gradients = tuple["Tensor | None", ...]

STRICT = " This is not allowed in strict mode."
NO_HISTORY = (
    "Output {} of the user-provided function does not require gradients. The outputs must be "
    "computed in a differentiable manner from the input when running in strict mode."
)
INDEPENDENT = "The output of the user-provided function is independent of input {}." + STRICT
CONSTANT_GRADIENT = (
    "The gradient with respect to input {} is independent of the inputs of the user-provided "
    "function." + STRICT
)
CONSTANT_JACOBIAN = (
    "While computing the hessian, found that the jacobian of the user-provided function with "
    "respect to input {} is independent of the input. This is not allowed in strict mode. You "
    "should ensure that your function is twice differentiable and that the jacobian depends on "
    "the inputs (this would be violated by a linear function for example)."
)


class Stage(NamedTuple):
    """Texts of strict mode for one differentiation: `{}` is the number of the input or entry."""

    missing: str
    constant: str


_JACOBIAN = "The jacobian of the user-provided function is independent of input {}."
_HESSIAN = "The hessian of the user-provided function is independent of "
_DIFFERENTIABLY = " This is not allowed in strict mode when create_graph=True."
BACK = Stage(INDEPENDENT, _JACOBIAN + _DIFFERENTIABLY)
BACK_TRICK = Stage(
    "The gradient with respect to the input is independent of entry {} in the grad_outputs when "
    "using the double backward trick to compute forward mode gradients." + STRICT,
    _JACOBIAN + _DIFFERENTIABLY,
)
DOUBLE_BACK = Stage(_JACOBIAN + STRICT, _HESSIAN + "input {}." + _DIFFERENTIABLY)
DOUBLE_BACK_TRICK = Stage(
    _HESSIAN + "entry {} in the grad_jacobian. This is not allowed in strict mode as it prevents "
    "from using the double backward trick to replace forward mode AD.",
    _HESSIAN + "input {}." + _DIFFERENTIABLY,
)
OUTPUTS = "outputs of the user-provided function"


def as_tensors(given: Any, what: str, function: str) -> tuple[bool, Tensors]:
    """Whether `given` is a tuple, and its tensors; a lone tensor becomes a tuple of one.

    Raises:
        OperandError: something else was given.
    """
    if isinstance(given, Tensor):
        return False, (given,)
    must = f"The {what} given to {function} must be either a Tensor or a tuple of Tensors but the "
    if not isinstance(given, tuple):
        raise OperandError(f"{must}given {what} has type {type(given)}.")
    for i, x in enumerate(given):
        if not isinstance(x, Tensor):
            raise OperandError(f"{must}value at index {i} has type {type(x)}.")
    return True, given


def fresh(inputs: Tensors, create_graph: bool, requires_grad: bool = True) -> Tensors:
    """New tensors over the same memory, connected to `inputs` where gradients are to flow there.

    They are new objects so that an input can be told from the same tensor captured by the user's
    function (https://github.com/pytorch/pytorch/issues/32576).
    """
    return tuple(
        view_as(x, x) if create_graph and x.requires_grad
        else alias(x).requires_grad_(requires_grad)
        for x in inputs
    )  # fmt: skip


def finished(results: Tensors, is_tuple: bool, create_graph: bool) -> Any:
    """Results as the caller gets them: without history unless asked for, unpacked if lone."""
    kept = results if create_graph else tuple(alias(x) for x in results)
    return kept if is_tuple else kept[0]


def check_vector(v: Tensors, like: Tensors, is_tuple: bool) -> None:
    """Hold `v` to the number and shapes of the tensors it multiplies.

    Raises:
        GradientError: it has another number of tensors.
        ShapeError: a tensor has another shape.
    """
    if len(v) != len(like):
        raise GradientError(
            f"v is a tuple of invalid length: should be {len(like)} but got {len(v)}."
            if is_tuple else "The given v should contain a single Tensor."
        )  # fmt: skip
    for i, (mine, other) in enumerate(zip(v, like, strict=True)):
        if mine.shape != other.shape:
            entry = f"Entry {i} in " if is_tuple else ""
            raise ShapeError(
                f"{entry}v has invalid size: should be {other.shape} but got {mine.shape}."
            )


def input_vector(
    v: Any, inputs: Tensors, is_tuple: bool, function: str, create_graph: bool
) -> Tensors | None:
    """The vector of jvp, vhp and hvp, which has the shapes of the inputs.

    Raises:
        GradientError: it is left out although the input has several elements; and as
            `as_tensors` and `check_vector`.
    """
    if v is not None:
        _, given = as_tensors(v, "v", function)
        check_vector(given, inputs, is_tuple)
        return fresh(given, create_graph, requires_grad=False)
    if len(inputs) != 1 or inputs[0].numel() != 1:
        raise GradientError(
            "The vector v can only be None if the input to the user-provided function is a single "
            "Tensor with a single element."
        )
    return None


def single_output(outputs: Any, function: str, strict: bool) -> Tensor:
    """The one-element tensor that a function to be differentiated twice must return.

    Raises:
        GradientError: it is a tuple, has several elements, or (strict) no history.
    """
    is_tuple, found = as_tensors(outputs, OUTPUTS, function)
    if strict:
        require_history(found, NO_HISTORY)
    if is_tuple:
        raise GradientError(f"The function given to {function} should return a single Tensor")
    if found[0].numel() != 1:
        raise GradientError(
            f"The Tensor returned by the function given to {function} should contain a single "
            "element"
        )
    return found[0]


def require_history(values: Gradients, text: str) -> None:
    """Strict mode: every value must exist and require grad; `text` is for one that does not.

    Raises:
        GradientError: one does not.
    """
    for i, x in enumerate(values):
        if x is None:
            raise GradientError(INDEPENDENT.format(i))
        if not x.requires_grad:
            raise GradientError(text.format(i))


def gradients(
    outputs: Gradients, inputs: Tensors, seeds: Sequence[Tensor | None] | None = None,
    create_graph: bool = False, retain_graph: bool | None = None,
) -> Gradients:  # fmt: skip
    """`grad` that passes over outputs without history, and gives None for unused inputs."""
    given = seeds if seeds is not None else (None,) * len(outputs)
    pairs = [(x, s) for x, s in zip(outputs, given, strict=True) if x is not None]
    pairs = [(x, s) for x, s in pairs if x.requires_grad]
    if not pairs:
        return (None,) * len(inputs)
    return grad(
        [x for x, _ in pairs], inputs, [s for _, s in pairs],
        retain_graph=retain_graph, create_graph=create_graph, allow_unused=True,
    )  # fmt: skip


def filled(
    found: Gradients, like: Tensors, strict: bool, create_graph: bool, stage: Stage
) -> Tensors:
    """Zeros in place of gradients that are None; in strict mode an error instead.

    Raises:
        GradientError: strict, and a gradient is missing (or, to be differentiable, constant).
    """
    result = []
    for i, (x, other) in enumerate(zip(found, like, strict=True)):
        if strict and x is None:
            raise GradientError(stage.missing.format(i))
        if strict and create_graph and x is not None and not x.requires_grad:
            raise GradientError(stage.constant.format(i))
        result.append(zeros_like(other) if x is None else x)
    return tuple(result)
