"""Modules that hold others in order: Sequential and ModuleList. Start reading at `_Ordered`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tracegrad.ir.errors import DimensionError, OperandError
from tracegrad.nn import naming
from tracegrad.nn.module import Module


class _Ordered(Module):
    """What the two have in common: submodules named "0", "1", ... and used as a list."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def _name(self, index: Any) -> str:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise DimensionError(f"index {index} is out of range")
        return list(self._modules)[index]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._made_of(list(self._modules.items())[index])
        return self._modules[self._name(index)]

    def _made_of(self, items: list[tuple[str, Module]]) -> Any:
        raise NotImplementedError

    def __setitem__(self, index: Any, module: Module) -> None:
        setattr(self, self._name(index), module)

    def __delitem__(self, index: Any) -> None:
        names = list(self._modules)
        gone = names[index] if isinstance(index, slice) else [self._name(index)]
        self._renumber([m for n, m in self._modules.items() if n not in gone])

    def _renumber(self, modules: Iterable[Module]) -> None:
        kept = list(modules)
        self._modules.clear()
        for i, module in enumerate(kept):
            self._modules[str(i)] = module

    def append(self, module: Module) -> Any:
        """Add a module at the end; returns self."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end; returns self.

        Raises:
            OperandError: `modules` is not iterable.
        """
        if not isinstance(modules, Iterable):
            raise OperandError(
                f"{type(self).__name__}.extend should be called with an iterable, but got "
                f"{type(modules).__name__}"
            )
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Any:
        """Put a module before position `index`; returns self.

        Raises:
            OperandError: `module` is no module.
        """
        if not isinstance(module, Module):
            raise OperandError(f"{naming.type_name(module)} is not a Module subclass")
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)
        return self

    def pop(self, index: int = -1) -> Module:
        """Take out the module at `index` and return it."""
        module = self[index]
        del self[index]
        return module

    def __iadd__(self, modules: Iterable[Module]) -> Any:
        return self.extend(modules)


class Sequential(_Ordered):
    """Modules called one after another; given in order, or as one dict of names.

    Raises:
        OperandError: something that is no module.
    Example:
        >>> import tracegrad as tg
        >>> net = tg.nn.Sequential(tg.nn.Linear(4, 2), tg.nn.ReLU())
        >>> net(tg.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, module in modules[0].items():
                self.add_module(name, module)
        else:
            for i, module in enumerate(modules):
                self.add_module(str(i), module)

    def forward(self, input: Any) -> Any:
        """What the last module returns."""
        for module in self._modules.values():
            input = module(input)
        return input

    def _made_of(self, items: list[tuple[str, Module]]) -> Any:
        return type(self)(dict(items))

    def __add__(self, other: Any) -> Sequential:
        if not isinstance(other, Sequential):
            raise OperandError(
                "add operator supports only objects of Sequential class, but "
                f"{type(other)} is given."
            )
        return Sequential(*self, *other)


class ModuleList(_Ordered):
    """A list of modules, whose parameters are found by the module that holds it.

    Raises:
        OperandError: something that is no module.
    """

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def _made_of(self, items: list[tuple[str, Module]]) -> Any:
        return type(self)([module for _, module in items])

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __repr__(self) -> str:
        parts = naming.runs([(name, repr(m)) for name, m in self._modules.items()])
        return naming.module_text(type(self).__name__, self.extra_repr(), parts)
