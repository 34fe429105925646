"""Anomaly mode: have a failing backward name the line of the forward that it belongs to.

Start reading at `detect_anomaly`.
"""

from __future__ import annotations

import warnings
from typing import Any

from tracegrad.ir.errors import OperandError
from tracegrad.tracer.anomaly import anomaly, set_mode

_ENABLED = (
    "Anomaly Detection has been enabled. This mode will increase the runtime and should only be "
    "enabled for debugging."
)


def _check_flags(enabled: object, check_nan: object) -> None:
    for position, (name, flag) in enumerate((("enabled", enabled), ("check_nan", check_nan)), 1):
        if type(flag) is not bool:
            raise OperandError(
                f"set_anomaly_enabled(): argument '{name}' (position {position}) must be bool, not "
                f"{type(flag).__name__}"
            )


class set_detect_anomaly:
    """Switch anomaly mode on or off, at once; as a context, restore it on leaving.

    Args:
        mode: on or off.
        check_nan: also raise where a step of the backward yields NaN.
    Raises:
        OperandError: `mode` or `check_nan` is no bool.
    Example:
        >>> import tracegrad as tg
        >>> with tg.autograd.set_detect_anomaly(True):
        ...     tg.autograd.is_anomaly_enabled()
        True
    """

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        _check_flags(mode, check_nan)
        self._before = (anomaly.enabled, anomaly.check_nan)
        set_mode(mode, check_nan)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        set_mode(*self._before)


class detect_anomaly:
    """Anomaly mode inside a `with` block (or a decorated function); warns that it is slow.

    While it is on, operations remember where they were called; a step of the backward that raises,
    or yields NaN with `check_nan`, is reported with that traceback. Compiled functions run eagerly.

    Raises:
        GradientError: (in the backward) `Function '...' returned nan values in its 0th output.`
    Example:
        >>> import warnings
        >>> import tracegrad as tg
        >>> x = tg.zeros(1, requires_grad=True)
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     with tg.autograd.detect_anomaly():
        ...         (x * tg.sqrt(x)).sum().backward()
        Traceback (most recent call last):
        tracegrad.ir.errors.GradientError: Function 'SqrtBackward0' returned nan values in its 0th output...
    """

    def __init__(self, check_nan: bool = True) -> None:
        self._check_nan = check_nan
        self._before: list[tuple[bool, bool]] = []
        warnings.warn(_ENABLED, UserWarning, stacklevel=2)

    def __enter__(self) -> None:
        _check_flags(True, self._check_nan)
        self._before.append((anomaly.enabled, anomaly.check_nan))
        set_mode(True, self._check_nan)

    def __exit__(self, *error: object) -> None:
        set_mode(*self._before.pop())

    def __call__(self, function: Any) -> Any:
        """Run `function` in the mode."""
        import functools

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapper


def is_anomaly_enabled() -> bool:
    """Whether anomaly mode is on.

    Example:
        >>> import tracegrad as tg
        >>> tg.autograd.is_anomaly_enabled()
        False
    """
    return anomaly.enabled


def is_anomaly_check_nan_enabled() -> bool:
    """Whether anomaly mode looks for NaN.

    Example:
        >>> import tracegrad as tg
        >>> with tg.autograd.set_detect_anomaly(True, check_nan=False):
        ...     tg.autograd.is_anomaly_check_nan_enabled()
        False
    """
    return anomaly.check_nan
