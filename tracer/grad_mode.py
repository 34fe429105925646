"""Whether operations are recorded for differentiation: contexts that are also decorators.

The mode is per thread and is restored on leaving, also by an exception. A decorated generator runs
each of its steps in the mode and hands the caller's mode back in between. Start at `_Mode`.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from tracegrad.ir.errors import OperandError
from tracegrad.ir.location import user_stacklevel
from tracegrad.tracer.state import state
from tracegrad.tracer.storage import marking

_CLASS = (
    "Decorating classes is deprecated and will be disabled in future versions. You should only "
    "decorate functions or methods. To preserve the current behavior of class decoration, you can "
    "directly decorate the `__init__` method and nothing else."
)


class set_multithreading_enabled:
    """Whether a backward may use threads of its own, for code written for PyTorch.

    Here a backward runs its nodes in the thread that calls it, whatever is set; the kernels of a
    node use the threads of `set_num_threads`. As a context, restores the setting on leaving.

    Raises:
        OperandError: `mode` is no bool.
    Example:
        >>> import tracegrad as tg
        >>> with tg.autograd.set_multithreading_enabled(False):
        ...     tg.ones(1, requires_grad=True).sum().backward()
    """

    def __init__(self, mode: bool) -> None:
        if type(mode) is not bool:
            raise OperandError(
                "set_multithreading_enabled(): argument 'enabled' (position 1) must be bool, not "
                f"{type(mode).__name__}"
            )
        self.mode = mode

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass

    def clone(self) -> set_multithreading_enabled:
        """Another one of the same mode."""
        return set_multithreading_enabled(self.mode)


class _Mode:
    """A re-usable, re-entrant context that sets the grad mode, and a decorator."""

    def __init__(self, enabled: bool, inference: bool | None = None) -> None:
        self._enabled = enabled
        self._inference = inference
        self._before: list[tuple[bool, bool]] = []

    def __enter__(self) -> None:
        self._before.append((state.grad_enabled, state.inference))
        if self._inference is not None:
            state.inference = self._inference
            if self._inference:
                marking.append(self)
        state.grad_enabled = self._enabled and not state.inference

    def __exit__(self, *exc: object) -> None:
        if self._inference:
            marking.remove(self)
        state.grad_enabled, state.inference = self._before.pop()

    def _fresh(self) -> _Mode:
        return _Mode(self._enabled, self._inference)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Run `function` (or every step of the generator it makes) in this mode."""
        if inspect.isclass(function):
            warnings.warn(_CLASS, FutureWarning, stacklevel=user_stacklevel())
        if inspect.isgeneratorfunction(function):
            return self._generator(function)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                return function(*args, **kwargs)

        return wrapper

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            steps = function(*args, **kwargs)
            advance: Callable[[], Any] = lambda: next(steps)  # noqa: E731
            try:
                while True:
                    with self._fresh():
                        try:
                            value = advance()
                        except StopIteration as end:
                            return end.value
                    try:
                        sent = yield value
                        advance = functools.partial(steps.send, sent)
                    except GeneratorExit:
                        raise
                    except BaseException as error:
                        advance = functools.partial(steps.throw, error)
            finally:
                with self._fresh():
                    steps.close()

        return wrapper


def is_grad_enabled() -> bool:
    """True where operations on tensors that require grad are recorded (the default)."""
    return state.grad_enabled


def is_inference_mode_enabled() -> bool:
    """True inside `inference_mode()`."""
    return state.inference


class no_grad(_Mode):
    """Switch recording off: results have no `grad_fn` and do not require grad.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> with tg.no_grad():
        ...     (2 * x).requires_grad
        False
    """

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        """The context; or, given a function, that function decorated."""
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_Mode):
    """Switch recording back on inside `no_grad()`. Context and decorator.

    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> with tg.no_grad(), tg.enable_grad():
        ...     (2 * x).requires_grad
        True
    """

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        """The context; or, given a function, that function decorated."""
        return super().__new__(cls) if function is None else cls()(function)

    def __init__(self) -> None:
        super().__init__(True)


class set_grad_enabled(_Mode):
    """Set recording on or off at once; as a context, restore it on leaving.

    Raises:
        OperandError: `mode` is no bool.
    Example:
        >>> import tracegrad as tg
        >>> x = tg.ones(2, requires_grad=True)
        >>> with tg.set_grad_enabled(False):
        ...     (2 * x).requires_grad
        False
    """

    def __init__(self, mode: bool) -> None:
        if not isinstance(mode, bool):
            raise OperandError(
                "set_grad_enabled(): argument 'enabled' (position 1) must be bool, not "
                f"{type(mode).__name__}"
            )
        super().__init__(mode)
        self._before.append((state.grad_enabled, state.inference))
        state.grad_enabled = mode

    def __enter__(self) -> None:
        """The mode was set, and the old one kept, by the constructor."""
        if not self._before:
            super().__enter__()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorating restores the mode at once: only the calls of `function` run in it."""
        state.grad_enabled, state.inference = self._before.pop()
        return super().__call__(function)


class inference_mode(_Mode):
    """Like `no_grad`: results can never be differentiated. `inference_mode(False)` undoes it.

    Raises:
        GradientError: (later) a tensor made inside is saved for a backward, or written to outside.
    Example:
        >>> import tracegrad as tg
        >>> with tg.inference_mode():
        ...     y = tg.ones(2) * 2
        >>> y.is_inference()
        True
        >>> tg.ones(2, requires_grad=True) * y
        Traceback (most recent call last):
        tracegrad.ir.errors.GradientError: Inference tensors cannot be saved for backward. ...
    """

    def __new__(cls, mode: Any = True) -> Any:
        """The context; or, given a function, that function decorated."""
        return cls()(mode) if callable(mode) else super().__new__(cls)

    def __init__(self, mode: bool = True) -> None:
        super().__init__(not mode, mode)
