"""Chains: ways to write a value that came from outside, and what bytecode does with them.

`cfg.lr` is `(("global", "cfg"), ("attr", "lr"))`. A place on the evaluation stack holds a set of
chains; the sets in capitals are markers that travel among them. `Uses` collects what happens to
chains. Start reading at `Use`.
"""

from __future__ import annotations

import types
from dataclasses import dataclass
from typing import Any

Step = tuple[str, Any]
Chain = tuple[Step, ...]  # the root: ("global"|"free"|"local"|"import", name), then the steps
Chains = frozenset[Chain]

EMPTY: Chains = frozenset()
NULL: Chains = frozenset({(("null", None),)})
MADE: Chains = frozenset({(("made", None),)})  # a function made here: its frames are seen
UNKNOWN: Chains = frozenset({(("unknown", None),)})  # joined to what is known where not all is
WRAPPED: Chains = frozenset({(("wrapped", None),)})  # the chains are in a container made here
SLICE: Chains = frozenset({(("slice", None),)})
EACH: Step = ("each", None)  # any element of a container

ROOTS = ("global", "free", "local", "import")
KEPT = (*ROOTS, "made", "wrapped")
LONGEST, WIDEST = 7, 24

# Built-ins whose result holds (elements of) their arguments; then methods of containers.
TRANSPARENT = frozenset(
    "enumerate zip reversed sorted list tuple set frozenset dict iter next min max".split()
    + "get values items keys pop popitem setdefault copy".split()
)
# Built-ins that look at nothing of their argument but its class or identity.
LOOKS_AT_NOTHING = frozenset("isinstance issubclass id callable super".split())


@dataclass(frozen=True)
class Use:
    """One use of a chain.

    `how` is "read" (its value was loaded), "contents" (a container was looked into), "operate" (an
    operand: what a container holds lives on in the result), "deep" (it went where it cannot be
    followed), "argument" (passed to one of `callees`; unknown where that is empty), "store"
    (assigned or deleted; the chain names the place).
    """

    chain: Chain
    how: str
    line: int
    callees: Chains = EMPTY


class Uses:
    """The uses of chains by one code object, and what its variables may stand for."""

    def __init__(self, code: types.CodeType) -> None:
        count = code.co_argcount + code.co_kwonlyargcount
        count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
        self.code = code
        self.parameters = frozenset(code.co_varnames[:count])
        self.variables: dict[str, Chains] = {}  # what a local may stand for
        self.uses: dict[Use, None] = {}
        self.keywords: tuple[str, ...] = ()
        self.line = code.co_firstlineno
        self.changed = False

    def _use(self, chains: Chains, how: str, callees: Chains = EMPTY) -> None:
        if how:
            for chain in chains:
                if chain[0][0] in ROOTS:
                    self.uses.setdefault(Use(chain, how, self.line, callees))

    def _extend(self, chains: Chains, step: Step, how: str = "read") -> Chains:
        made = set()
        for chain in chains:
            if chain[0][0] not in ROOTS:
                continue
            if len(chain) >= LONGEST:
                self._use(frozenset({chain}), "deep")
            else:
                made.add((*chain, step))
        if len(made) > WIDEST:
            self._use(frozenset(made), "deep")
            made.clear()
        result = frozenset(made)
        self._use(result, how)
        return result

    def _root(self, kind: str, name: str) -> Chains:
        result: Chains = frozenset({((kind, name),)})
        self._use(result, "read")
        return result

    def _inside(self, chains: Chains) -> Chains:
        return self._extend(chains, EACH) | chains


def pop(stack: list[Chains]) -> Chains:
    """The top; what lies below the known part of the stack is unknown."""
    return stack.pop() if stack else EMPTY


def deepen(stack: list[Chains], depth: int) -> None:
    """Make the known part of the stack at least so deep."""
    stack[:0] = [EMPTY] * (depth - len(stack))


def is_constant(chains: Chains) -> bool:
    """Whether the value is a constant of the code, and nothing else."""
    return len(chains) == 1 and next(iter(chains))[0][0] == "const"


def constant(chains: Chains) -> Any:
    """The constant, or None."""
    return next(iter(chains))[0][1] if is_constant(chains) else None


def join(
    known: tuple[Chains, ...] | None, new: tuple[Chains, ...], limit: int
) -> tuple[Chains, ...]:
    """Two stacks, aligned at the top; no deeper than the stack can be."""
    new = new[-limit:] if limit else ()
    if known is None or known == new:
        return new
    depth = max(len(known), len(new))
    left = (EMPTY,) * (depth - len(known)) + known
    right = (EMPTY,) * (depth - len(new)) + new
    return tuple(
        a | b if bool(a) == bool(b) else a | b | UNKNOWN for a, b in zip(left, right, strict=True)
    )
