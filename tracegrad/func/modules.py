"""`functional_call`: a module called with other weights; `stack_module_state`: weights of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tracegrad.ir.errors import GradientError, OperandError, ParameterError
from tracegrad.nn.module import Module
from tracegrad.tracer.joining import stack
from tracegrad.tracer.tensor import Tensor

_Place = tuple[Any, str]  # a registry of a module, and the name in it


def functional_call(
    module: Module, parameter_and_buffer_dicts: Any, args: Any = None, kwargs: Any = None, *,
    tie_weights: bool = True, strict: bool = False,
) -> Any:  # fmt: skip
    """Call `module` with the tensors given in place of its parameters and buffers.

    Gradients flow to the tensors given. The module has its own weights again afterwards, also
    after an exception.

    Args:
        parameter_and_buffer_dicts: tensors by name (`layer.weight`), or several such dicts.
        args: the arguments, a tuple; anything else is a lone argument.
        kwargs: keyword arguments.
        tie_weights: a tensor given for one name of a shared weight stands for its other names.
        strict: refuse names that are missing or unknown; otherwise the former keep their own
            weights and the latter are ignored.
    Returns:
        What the module returns.
    Raises:
        OperandError: `module` is not a module, or a value is not a tensor.
        ParameterError: no dicts; a name is given twice; two values for one shared weight.
        GradientError: strict, and names are missing or unknown.
    Source: torch.func.functional_call.
    Example:
        >>> import tracegrad as tg
        >>> layer = tg.nn.Linear(2, 1)
        >>> weights = {"weight": tg.tensor([[1.0, 2.0]]), "bias": tg.tensor([3.0])}
        >>> functional_call(layer, weights, (tg.tensor([10.0, 100.0]),))
        tensor([213.])
    """
    if not isinstance(module, Module):
        raise OperandError(f"functional_call: expected a module, got {type(module).__name__}")
    given = _merged(parameter_and_buffer_dicts)
    places = _places(module)
    if tie_weights:
        given = _tied(given, places)
    if strict:
        _check_names(module, given, places)
    arguments = () if args is None else args if isinstance(args, tuple) else (args,)
    with _replaced([(places[name], x) for name, x in given.items() if name in places]):
        return module(*arguments, **(kwargs or {}))


def stack_module_state(models: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of several modules of one kind, stacked, for `vmap` over an ensemble.

    Args:
        models: modules of the same class, with parameters and buffers of the same shapes.
    Returns:
        `(parameters, buffers)`: by name, with the module as the first dimension. The stacked
        parameters are leaves that require grad as those of the first module do.
    Raises:
        GradientError: there is no module, their classes differ, or some are in training mode and
            some are not.
    Source: torch.func.stack_module_state.
    Example:
        >>> import tracegrad as tg
        >>> layers = [tg.nn.Linear(2, 3) for _ in range(4)]
        >>> weights, buffers = stack_module_state(layers)
        >>> x = tg.ones(5, 2)
        >>> tg.vmap(lambda w: functional_call(layers[0], w, (x,)))(weights).shape
        torch.Size([4, 5, 3])
    """
    given = list(models)
    if not given:
        raise GradientError("stack_module_state: Expected at least one model, got 0.")
    if any(m.training != given[0].training for m in given):
        raise GradientError(
            "stack_module_state: Expected all models to have the same training/eval mode."
        )
    if any(type(m) is not type(given[0]) for m in given):
        raise GradientError("stack_module_state: Expected all models to be of the same class.")
    parameters = _stacked([dict(m.named_parameters()) for m in given])
    buffers = _stacked([dict(m.named_buffers()) for m in given])
    return parameters, buffers


def _stacked(several: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Dicts with the same names as one dict of stacked tensors."""
    return {
        name: stack([d[name].detach() for d in several]).requires_grad_(first.requires_grad)
        for name, first in several[0].items()
    }


def _merged(dicts: Any) -> dict[str, Tensor]:
    """One dict of tensors by name."""
    if isinstance(dicts, dict):
        parts = [dicts]
    elif isinstance(dicts, list | tuple):
        parts = list(dicts)
        if not all(isinstance(d, dict) for d in parts):
            raise ParameterError(
                "Expected all elements of parameter_and_buffer_dicts to be dictionaries"
            )
    else:
        raise ParameterError(
            "Expected parameter_and_buffer_dicts to be a dict, or a list/tuple of dicts, but got "
            f"{type(dicts)}"
        )
    names = [name for d in parts for name in d]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ParameterError(
            f"{repeated} appeared in multiple dictionaries; behavior of functional call is ambiguous"
        )
    result = {name: x for d in parts for name, x in d.items()}
    for name, x in result.items():
        if not isinstance(x, Tensor):
            raise OperandError(f"{x!r} is not an instance of Tensor (given for {name!r})")
    return result


def _places(module: Module) -> dict[str, _Place]:
    """Where each parameter and buffer is kept; a shared one under each of its names."""
    found: dict[str, _Place] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for registry in (part._parameters, part._buffers):
            for name, x in registry.items():
                if x is not None:
                    found[f"{prefix}.{name}" if prefix else name] = (registry, name)
    return found


def _tied(given: dict[str, Tensor], places: dict[str, _Place]) -> dict[str, Tensor]:
    """`given`, with the other names of shared weights filled in."""
    names: dict[int, list[str]] = {}
    for name, (registry, key) in places.items():
        names.setdefault(id(registry[key]), []).append(name)
    result = dict(given)
    for group in names.values():
        values = [given[name] for name in group if name in given]
        if any(x is not values[0] for x in values):
            raise ParameterError(
                f"functional_call got multiple values for keys {sorted(group)}, which are tied. "
                "Consider using tie_weights=False"
            )
        if values:
            result.update(dict.fromkeys(group, values[0]))
    return result


def _check_names(module: Module, given: dict[str, Tensor], places: dict[str, _Place]) -> None:
    faults = []
    for what, names in (
        ("Unexpected", given.keys() - places.keys()),
        ("Missing", places.keys() - given.keys()),
    ):
        if names:
            faults.append(f"{what} key(s): {', '.join(map(repr, sorted(names)))}.")
    if faults:
        raise GradientError(
            f"Error(s) in reparametrizing for {type(module).__name__}:\n\t" + "\n\t".join(faults)
        )


@contextmanager
def _replaced(changes: list[tuple[_Place, Tensor]]) -> Iterator[None]:
    """Put tensors into registries for the length of a `with` block."""
    before = [(registry, name, registry[name]) for (registry, name), _ in changes]
    try:
        for (registry, name), x in changes:
            registry[name] = x
        yield
    finally:
        for registry, name, x in before:
            registry[name] = x
