"""`Module`: a function with weights, submodules and state, as in PyTorch.

Parameters, buffers and submodules are registered by assigning them to attributes. Loading and
saving of weights is in `tracegrad.nn.loading`. Start reading at `Module`, then `__setattr__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracegrad.ir import dtypes
from tracegrad.ir.errors import OperandError, ParameterError
from tracegrad.nn import loading, naming, traversal
from tracegrad.nn.parameter import Parameter
from tracegrad.nn.registry import Registry, RemovableHandle
from tracegrad.tracer.epoch import Epoch
from tracegrad.tracer.tensor import Tensor

_KINDS = ("_parameters", "_buffers", "_modules")
_REGISTRIES = (*_KINDS, "_forward_pre_hooks", "_forward_hooks")
_PLAIN = (bool, int, float, str, type(None))
_MISSING = object()


class Module(traversal.Traversal, Epoch):
    """Base class of everything with weights: subclass it and define `forward`.

    Call `super().__init__()` before assigning parameters or submodules. Every change (an attribute
    written, a hook added or removed, `train()`, `to()`) is counted in `_epoch`, which tells a
    compiled function that what it captured of this module no longer holds.

    Raises:
        AttributeError: a parameter, buffer or module is assigned before `super().__init__()`.
    Source: PyTorch documentation, `torch.nn.Module`.
    Example:
        >>> import tracegrad as tg
        >>> class Net(tg.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = tg.nn.Linear(4, 2)
        ...     def forward(self, x):
        ...         return self.layer(x).relu()
        >>> Net()(tg.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    training: bool
    _version = 1  # of the names in `state_dict()`, which notes it in `_metadata`

    def __init__(self) -> None:
        for name in _REGISTRIES:
            object.__setattr__(self, name, Registry(self))
        object.__setattr__(self, "_non_persistent_buffers_set", set())
        self.training = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a call computes; subclasses define it."""
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, with hooks before and after."""
        if self._forward_hooks or self._forward_pre_hooks:
            return self._call_with_hooks(args, kwargs)
        return self.forward(*args, **kwargs)

    # ---- registration ---------------------------------------------------------------------------

    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Add a parameter; None reserves the name for one that this module does without.

        Raises:
            OperandError, KeyError: as PyTorch, for wrong names and values.
        """
        self._check_new("parameter", name, "_parameters")
        if param is not None and not isinstance(param, Parameter):
            raise OperandError(
                f"cannot assign '{naming.type_name(param)}' object to parameter '{name}' "
                "(torch.nn.Parameter or None required)"
            )
        self._parameters[name] = param

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that is state but no weight; `persistent=False` keeps it out of state_dict.

        Raises:
            OperandError, KeyError: as PyTorch, for wrong names and values.
        """
        self._check_new("buffer", name, "_buffers")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise OperandError(
                f"cannot assign '{naming.type_name(tensor)}' object to buffer '{name}' "
                "(torch Tensor or None required)"
            )
        self._buffers[name] = tensor
        (self._non_persistent_buffers_set.discard if persistent
         else self._non_persistent_buffers_set.add)(name)  # fmt: skip

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule.

        Raises:
            OperandError, KeyError: as PyTorch, for wrong names and values.
        """
        if module is not None and not isinstance(module, Module):
            raise OperandError(f"{naming.type_name(module)} is not a Module subclass")
        self._check_new("module", name, "_modules")
        self._modules[name] = module

    def register_module(self, name: str, module: Module | None) -> None:
        """`add_module` under its other name."""
        self.add_module(name, module)

    def _check_new(self, kind: str, name: str, registry: str) -> None:
        if "_parameters" not in self.__dict__:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        if not isinstance(name, str):
            raise OperandError(f"{kind} name should be a string. Got {naming.type_name(name)}")
        if "." in name:
            got = f", got: {name}" if kind == "module" else ""
            raise KeyError(f'{kind} name can\'t contain "."{got}')
        if not name:
            raise KeyError(f'{kind} name can\'t be empty string ""')
        if hasattr(self, name) and name not in self.__dict__[registry]:
            raise KeyError(f"attribute '{name}' already exists")

    # ---- attributes -----------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        found = self.__dict__
        for kind, registry, fits in _ASSIGNED:
            if isinstance(value, fits):
                if registry not in found:
                    raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
                self._forget(name, keep=registry)
                getattr(self, _REGISTER[registry])(name, value)
                return
        for registry, word, wanted in _HELD:
            if name in found.get(registry, ()):
                if value is not None and not (registry == "_buffers" and isinstance(value, Tensor)):
                    raise OperandError(
                        f"cannot assign '{naming.type_name(value)}' as {word} '{name}' ({wanted})"
                    )
                found[registry][name] = value
                return
        if type(value) in _PLAIN and found.get(name, _MISSING) is value:
            return  # the same number again, as `train()` writes in every epoch: nothing changes
        super().__setattr__(name, value)

    def _forget(self, name: str, keep: str) -> None:
        """Take `name` out of wherever it is registered, to be registered in `keep`."""
        self.__dict__.pop(name, None)
        for registry in _KINDS:
            if registry != keep:
                self.__dict__[registry].pop(name, None)
        self._non_persistent_buffers_set.discard(name)

    def __getattr__(self, name: str) -> Any:
        for registry in _KINDS:
            held = self.__dict__.get(registry)
            if held is not None and name in held:
                return held[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __delattr__(self, name: str) -> None:
        for registry in _KINDS:
            held = self.__dict__.get(registry, {})
            if name in held:
                del held[name]
                self._non_persistent_buffers_set.discard(name)
                return
        if name not in self.__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        names = [*super().__dir__(), *(n for r in _KINDS for n in self.__dict__.get(r, ()))]
        return sorted(n for n in set(names) if not n[:1].isdigit())

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in _REGISTRIES:
            object.__setattr__(self, name, Registry(self, state[name]))
        object.__setattr__(
            self, "_non_persistent_buffers_set", set(state["_non_persistent_buffers_set"])
        )

    def _epoch_state(self) -> list[tuple[Any, Any]]:
        state = []
        for name, value in super()._epoch_state():
            state.append((name, value))
            if type(value) is Registry:
                state += [((name, key), held) for key, held in value.items()]
        return state

    def _epoch_parts(self) -> list[Epoch]:
        return [m for m in self._modules.values() if m is not None]

    def _epoch_tensors(self) -> list[Any]:
        held = (*self._parameters.values(), *self._buffers.values())
        return [t for t in held if t is not None]

    # ---- hooks ----------------------------------------------------------------------------------

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args)` before `forward`; what it returns, if not None, replaces args.

        With `with_kwargs`: `hook(module, args, kwargs)`, returning None or (args, kwargs).
        """
        return RemovableHandle(self._forward_pre_hooks, (hook, with_kwargs), prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args, output)` after `forward`; a result not None is the new output.

        With `with_kwargs`: `hook(module, args, kwargs, output)`.
        """
        return RemovableHandle(self._forward_hooks, (hook, with_kwargs), prepend)

    def _call_with_hooks(self, args: Any, kwargs: dict[str, Any]) -> Any:
        for hook, with_kwargs in tuple(self._forward_pre_hooks.values()):
            given = hook(self, args, kwargs) if with_kwargs else hook(self, args)
            if given is None:
                continue
            if not with_kwargs:
                args = given if isinstance(given, tuple) else (given,)
            elif isinstance(given, tuple) and len(given) == 2:
                args, kwargs = given
            else:
                raise ParameterError(
                    "forward pre-hook must return None or a tuple of (new_args, new_kwargs), "
                    f"but got {given}."
                )
        out = self.forward(*args, **kwargs)
        for hook, with_kwargs in tuple(self._forward_hooks.values()):
            given = hook(self, args, kwargs, out) if with_kwargs else hook(self, args, out)
            out = out if given is None else given
        return out

    # ---- modes, dtypes, gradients ---------------------------------------------------------------

    def train(self, mode: bool = True) -> Module:
        """Set the training mode of this module and all below; returns self.

        Raises:
            ParameterError: `mode` is no bool.
        """
        if not isinstance(mode, bool):
            raise ParameterError("training mode is expected to be boolean")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """`train(False)`: dropout passes everything."""
        return self.train(False)

    def apply(self, fn: Callable[[Module], Any]) -> Module:
        """Call `fn` on every submodule, then on this module; returns self."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Set `requires_grad` of every parameter; returns self."""
        for module in self.modules():
            for p in module._parameters.values():
                if p is not None:
                    p.requires_grad_(requires_grad)
            module._bump()
        return self

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Set all gradients to zeros, in place; with `set_to_none`, to None."""
        for p in self.parameters():
            loading.clear_gradient(p, set_to_none)

    def to(self, *args: Any, **kwargs: Any) -> Module:
        """Move or cast parameters and buffers in place: `to(device)`, `to(dtype)`, `to(tensor)`.

        A dtype is given to floating tensors only. Parameters stay the same objects, so an
        optimizer keeps them.

        Raises:
            OperandError: a dtype that is not floating.
            DeviceError: a device that is not there.
        """
        convert = loading.converter(*args, **kwargs)
        for module in self.modules():
            loading.convert_tensors(module, convert)
            module._bump()
        return self

    def float(self) -> Module:
        """`to(float32)`."""
        return self.to(dtypes.float32)

    def double(self) -> Module:
        """`to(float64)`."""
        return self.to(dtypes.float64)

    def half(self) -> Module:
        """`to(float16)`."""
        return self.to(dtypes.float16)

    def bfloat16(self) -> Module:
        """`to(bfloat16)`."""
        return self.to(dtypes.bfloat16)

    def cpu(self) -> Module:
        """`to("cpu")`."""
        return self.to("cpu")

    def cuda(self, device: Any = None) -> Module:
        """`to("cuda")`, or to the CUDA device given.

        Raises:
            DeviceError: there is no such device.
        """
        return self.to("cuda" if device is None else device)

    # ---- state ----------------------------------------------------------------------------------

    def state_dict(
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Parameters and persistent buffers by dotted name, detached unless `keep_vars`.

        Its attribute `_metadata` holds the version of each module's names, by the module's path.
        """
        return loading.collect(self, destination, prefix, keep_vars)

    def load_state_dict(
        self, state_dict: Any, strict: bool = True, assign: bool = False
    ) -> loading.IncompatibleKeys:
        """Copy values into parameters and buffers; where that fails, nothing was changed.

        Args:
            state_dict: values by dotted name, as `state_dict()` returns them.
            strict: refuse missing and unexpected names.
            assign: put the tensors themselves in place of the module's.
        Returns:
            (missing_keys, unexpected_keys).
        Raises:
            ModuleStateError: names or shapes do not fit (PyTorch's text, all faults in one).
            OperandError: `state_dict` is no mapping.
        """
        return loading.load(self, state_dict, strict, assign)

    def _optional_keys(self, version: int | None) -> tuple[str, ...]:
        """Own names that state saved by this version, None if unknown, may lack."""
        return ()

    # ---- text -----------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What `repr` shows of this module's settings."""
        return ""

    def __repr__(self) -> str:
        parts = [(n, repr(m)) for n, m in self._modules.items()]
        return naming.module_text(type(self).__name__, self.extra_repr(), parts)


_ASSIGNED: tuple[tuple[str, str, type[Any]], ...] = (
    ("parameters", "_parameters", Parameter),
    ("module", "_modules", Module),
)
_REGISTER = {"_parameters": "register_parameter", "_modules": "add_module"}
_HELD = (
    ("_parameters", "parameter", "torch.nn.Parameter or None expected"),
    ("_modules", "child module", "torch.nn.Module or None expected"),
    ("_buffers", "buffer", "torch.nn.Buffer, torch.Tensor or None expected"),
)
