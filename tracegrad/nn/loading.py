"""State of modules: collecting it by name, loading it, casting and moving it.

Loading looks at everything first and writes only where all fits. Start reading at `load`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tracegrad.ir import dtypes
from tracegrad.ir.dtypes import DType
from tracegrad.ir.errors import ModuleStateError, OperandError
from tracegrad.nn.parameter import Parameter
from tracegrad.tracer.device import as_device, device
from tracegrad.tracer.grad_mode import no_grad
from tracegrad.tracer.moving import moved
from tracegrad.tracer.tensor import Tensor

if TYPE_CHECKING:
    from tracegrad.nn.module import Module

Convert = Callable[[Tensor], Tensor]


class IncompatibleKeys(NamedTuple):
    """Names that `load_state_dict` missed, and names that it had no use for."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return f"_IncompatibleKeys{tuple.__repr__(self)}"


def collect(module: Module, destination: Any, prefix: str, keep_vars: bool) -> dict[str, Any]:
    """Parameters and persistent buffers by dotted name."""
    found: Any = OrderedDict() if destination is None else destination
    for path, name, _, tensor in _entries(module):
        found[f"{prefix}{path}{name}"] = tensor if keep_vars else tensor.detach()
    if destination is None:
        found._metadata = OrderedDict()
    if hasattr(found, "_metadata"):
        for path, part in _parts(module, prefix):
            found._metadata[path[:-1]] = {"version": part._version}
    return found


def _parts(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """(path with dot, module) of this module and all below."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _parts(child, f"{prefix}{name}.")


def _entries(module: Module, prefix: str = "") -> Iterator[tuple[str, str, Any, Tensor]]:
    """(path with dot, name, registry, tensor) of all that belongs into a state_dict."""
    for path, part in _parts(module, prefix):
        for registry in (part._parameters, part._buffers):
            for name, tensor in registry.items():
                if tensor is not None and name not in part._non_persistent_buffers_set:
                    yield path, name, registry, tensor


def load(module: Module, given: Any, strict: bool, assign: bool) -> IncompatibleKeys:
    """Check `given` against the module, then write it.

    Raises:
        OperandError: `given` is no mapping.
        ModuleStateError: names, where `strict`, or values do not fit.
    """
    if not isinstance(given, Mapping):
        raise OperandError(f"Expected state_dict to be dict-like, got {type(given)}.")
    entries = {path + name: (registry, name, t) for path, name, registry, t in _entries(module)}
    optional = _optional_keys(module, getattr(given, "_metadata", {}))
    missing = [key for key in entries if key not in given and key not in optional]
    unexpected = [key for key in given if key not in entries]
    faults = _faults(missing, unexpected) if strict else []
    for key, (_, _, tensor) in entries.items():
        if key in given:
            faults += _value_faults(key, tensor, given[key])
    if faults:
        raise ModuleStateError(
            f"Error(s) in loading state_dict for {type(module).__name__}:\n\t" + "\n\t".join(faults)
        )
    with no_grad():
        for key, (registry, name, tensor) in entries.items():
            if key in given and assign:
                registry[name] = _assigned(tensor, given[key])
            elif key in given:
                tensor.copy_(given[key])
    return IncompatibleKeys(missing, unexpected)


def _optional_keys(module: Module, metadata: Mapping[str, Any]) -> set[str]:
    """Names that state of the versions in `metadata` may lack."""
    return {
        path + name
        for path, part in _parts(module)
        for name in part._optional_keys(metadata.get(path[:-1], {}).get("version"))
    }


def _faults(missing: list[str], unexpected: list[str]) -> list[str]:
    faults = []
    for word, keys in (("Missing", missing), ("Unexpected", unexpected)):
        if keys:
            listed = ", ".join(f'"{key}"' for key in keys)
            faults.append(f"{word} key(s) in state_dict: {listed}. ")
    return faults


def _value_faults(key: str, tensor: Tensor, value: Any) -> list[str]:
    if not isinstance(value, Tensor):
        return [
            f'While copying the parameter named "{key}", expected torch.Tensor or Tensor-like '
            f"object from checkpoint but received {type(value)}"
        ]
    if value.shape != tensor.shape:
        return [
            f"size mismatch for {key}: copying a param with shape {value.shape!r} from checkpoint, "
            f"the shape in current model is {tensor.shape!r}."
        ]
    return []


def _assigned(old: Tensor, value: Tensor) -> Tensor:
    """`value` as what the module held: a parameter stays a parameter."""
    if not isinstance(old, Parameter):
        return value
    return value if isinstance(value, Parameter) else Parameter(value, old.requires_grad)


# ---- casting ------------------------------------------------------------------------------------


def converter(*args: Any, **kwargs: Any) -> Convert:
    """What `Module.to(*args, **kwargs)` does to each tensor.

    Raises:
        OperandError: an argument that is neither device, dtype nor tensor, or a dtype that is not
            floating.
    """
    where, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    kwargs.pop("non_blocking", None)
    if kwargs:
        raise OperandError(f"to() got an unexpected keyword argument {next(iter(kwargs))!r}")
    for arg in args:
        if isinstance(arg, Tensor):
            where, dtype = arg.device, arg.dtype
        elif isinstance(arg, device | str) or type(arg) is int:
            where = arg
        elif not isinstance(arg, bool):
            dtype = arg
    place = None if where is None else as_device(where)
    target = None if dtype is None else dtypes.as_dtype(dtype)
    if target is not None and not target.is_floating_point:
        raise OperandError(
            "nn.Module.to only accepts floating point or complex dtypes, but got desired "
            f"dtype={target}"
        )

    def convert(x: Tensor) -> Tensor:
        x = x.to(target) if _casts(x, target) else x
        return x if place is None else moved(x, place)

    return convert


def _casts(x: Tensor, target: DType | None) -> bool:
    return target is not None and x.dtype.is_floating_point and x.dtype is not target


def convert_tensors(module: Module, convert: Convert) -> None:
    """Apply `convert` to the parameters (and their gradients) and buffers held directly."""
    with no_grad():
        for parameter in module._parameters.values():
            if parameter is not None:
                gradient = parameter.grad
                _convert_in_place(parameter, convert)
                if gradient is not None:
                    _convert_in_place(gradient, convert)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert(buffer)


def _convert_in_place(tensor: Tensor, convert: Convert) -> None:
    data = tensor.data
    converted = convert(data)
    if converted is not data:
        tensor.data = converted


def clear_gradient(parameter: Tensor, set_to_none: bool) -> None:
    """Set the gradient to zeros, in place and without history, or to None."""
    if set_to_none:
        parameter.grad = None  # whether there was one does not matter: a trace need not ask
        return
    gradient = parameter.grad
    if gradient is None:
        return
    if gradient.grad_fn is not None:
        gradient.detach_()
    else:
        gradient.requires_grad_(False)
    gradient.zero_()
