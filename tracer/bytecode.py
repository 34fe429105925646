"""What a code object reads and writes outside itself, found by abstract interpretation of bytecode.

Every place on the evaluation stack holds a set of *chains*: ways to write a value that came from
outside, such as `cfg.lr` = (("global", "cfg"), ("attr", "lr")). Instructions move chains, extend
them, or use them up; each use is a `Use` with its line. Local variables are followed without regard
to order, branches are joined by union: a chain may be listed that no run reads, but none is missed.
Instructions unknown here use up all they could touch. Works on CPython 3.10 to 3.13.
Instructions that load and store are in `tracegrad.tracer.bytecode_loads`, those that build and call
in `tracegrad.tracer.bytecode_calls`. Start reading at `analyse`, then `_Interpreter.run`.
"""

from __future__ import annotations

import dis
import types
from functools import lru_cache

from tracegrad.tracer.bytecode_calls import Calls
from tracegrad.tracer.bytecode_chains import (
    EMPTY,
    ROOTS,
    Chains,
    Use,
    join,
    pop,
)
from tracegrad.tracer.bytecode_loads import Loads

_JUMPS_ALWAYS = frozenset(
    "JUMP_FORWARD JUMP_ABSOLUTE JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT JUMP JUMP_NO_INTERRUPT"
    .split()
)  # fmt: skip
_ENDS = frozenset("RETURN_VALUE RETURN_CONST RAISE_VARARGS RERAISE INTERPRETER_EXIT".split())

# name -> how many places it takes; what it does with them: "" nothing, or "contents", or "deep".
_PLAIN: dict[str, tuple[int, str]] = {
    **dict.fromkeys(
        "NOP RESUME CACHE PRECALL KW_NAMES COPY_FREE_VARS MAKE_CELL EXTENDED_ARG SETUP_FINALLY "
        "SETUP_ANNOTATIONS POP_BLOCK LOAD_CLOSURE LOAD_ASSERTION_ERROR LOAD_BUILD_CLASS "
        "LOAD_LOCALS DELETE_FAST DELETE_NAME RETURN_GENERATOR RETURN_CONST JUMP_FORWARD "
        "JUMP_ABSOLUTE JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT RERAISE WITH_EXCEPT_START "
        "PUSH_EXC_INFO".split(),
        (0, ""),
    ),
    **dict.fromkeys(
        "POP_TOP POP_EXCEPT GEN_START POP_JUMP_IF_NONE "
        "POP_JUMP_IF_NOT_NONE "
        "POP_JUMP_FORWARD_IF_NONE POP_JUMP_FORWARD_IF_NOT_NONE POP_JUMP_BACKWARD_IF_NONE "
        "POP_JUMP_BACKWARD_IF_NOT_NONE END_FOR CHECK_EXC_MATCH GET_AWAITABLE".split(),
        (1, ""),
    ),
    **dict.fromkeys(
        "UNARY_NOT UNARY_NEGATIVE UNARY_POSITIVE UNARY_INVERT TO_BOOL POP_JUMP_IF_TRUE "
        "POP_JUMP_IF_FALSE POP_JUMP_FORWARD_IF_TRUE POP_JUMP_FORWARD_IF_FALSE "
        "POP_JUMP_BACKWARD_IF_TRUE POP_JUMP_BACKWARD_IF_FALSE BEFORE_WITH SETUP_WITH "
        "CONVERT_VALUE FORMAT_SIMPLE".split(),
        (1, "contents"),
    ),
    **dict.fromkeys("YIELD_VALUE RAISE_VARARGS".split(), (1, "deep")),
    **dict.fromkeys("IS_OP JUMP_IF_NOT_EXC_MATCH".split(), (2, "")),
    **dict.fromkeys("COMPARE_OP CONTAINS_OP BINARY_OP FORMAT_WITH_SPEC".split(), (2, "operate")),
    "SET_FUNCTION_ATTRIBUTE": (1, ""),
}


@lru_cache(maxsize=4096)
def analyse(code: types.CodeType) -> tuple[Use, ...]:
    """All uses of outside values by `code`, in the order of first sight; cached per code object."""
    interpreter = _Interpreter(code)
    interpreter.run()
    return tuple(interpreter.uses)


class _Interpreter(Loads, Calls):
    # ---- control flow ----------------------------------------------------------------------------

    def run(self) -> None:
        instructions = list(dis.get_instructions(self.code))
        lines = self._lines(instructions)
        handlers = self._handlers()
        self.changed = True
        while self.changed:
            self.changed = False
            self._pass(instructions, lines, handlers)

    def _lines(self, instructions: list[dis.Instruction]) -> list[int]:
        lines, line = [], self.code.co_firstlineno
        for instruction in instructions:
            positions = getattr(instruction, "positions", None)
            exact = positions.lineno if positions else None
            started = instruction.starts_line
            if exact is None and started is not None and not isinstance(started, bool):
                exact = started
            line = exact or line
            lines.append(line)
        return lines

    def _handlers(self) -> list[int]:
        """Offsets of exception handlers; they begin with a stack that is not known."""
        if not hasattr(dis, "_parse_exception_table"):
            return []  # 3.10: SETUP_FINALLY jumps there
        return [entry.target for entry in dis._parse_exception_table(self.code)]

    def _pass(
        self, instructions: list[dis.Instruction], lines: list[int], handlers: list[int]
    ) -> None:
        index = {instruction.offset: i for i, instruction in enumerate(instructions)}
        states: dict[int, tuple[Chains, ...]] = {0: ()}
        states.update({index[h]: () for h in handlers})
        work = sorted(states, reverse=True)
        while work:
            i = work.pop()
            self.line = lines[i]
            for successor, stack in self._step(instructions[i], i, list(states[i]), index):
                merged = join(states.get(successor), stack, self.code.co_stacksize)
                if successor < len(instructions) and merged != states.get(successor):
                    states[successor] = merged
                    work.append(successor)

    def _step(
        self, instruction: dis.Instruction, i: int, stack: list[Chains], index: dict[int, int]
    ) -> list[tuple[int, tuple[Chains, ...]]]:
        name = instruction.opname
        jumps = instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs
        target = index.get(instruction.argval) if jumps else None
        before = list(stack)
        self._execute(instruction, stack)
        following = []
        if name not in _ENDS and name not in _JUMPS_ALWAYS:
            following.append((i + 1, tuple(stack)))
        if target is not None:
            following.append((target, self._at_target(name, before, stack)))
        return following

    @staticmethod
    def _at_target(name: str, before: list[Chains], after: list[Chains]) -> tuple[Chains, ...]:
        if name == "FOR_ITER":  # the iterator is popped, by the jump or by END_FOR
            return (*before, EMPTY) if "END_FOR" in dis.opmap else tuple(before[:-1])
        if name in ("JUMP_IF_TRUE_OR_POP", "JUMP_IF_FALSE_OR_POP"):
            return tuple(before)
        if name == "SETUP_FINALLY":
            return (*before, *[EMPTY] * 6)
        if name == "SETUP_WITH":
            return (*before[:-1], *[EMPTY] * 7)
        return tuple(after)

    # ---- instructions ----------------------------------------------------------------------------

    def _execute(self, instruction: dis.Instruction, stack: list[Chains]) -> None:
        name, arg = instruction.opname, instruction.arg or 0
        special = getattr(self, f"_{name.lower()}", None)
        if special is not None:
            special(instruction, stack)
            return
        if name.startswith(("BINARY_", "INPLACE_")) and name not in _PLAIN:
            takes, how = 2, "operate"
        elif name in _PLAIN:
            takes, how = _PLAIN[name]
            if name in ("END_FOR", "POP_EXCEPT"):  # how many differs between versions
                takes = -dis.stack_effect(instruction.opcode)
        else:
            takes, how = len(stack), "deep"
        taken = [pop(stack) for _ in range(takes)]
        for chains in taken:
            self._use(chains, how)
        if name not in _PLAIN and how == "deep":
            return
        gives = takes + dis.stack_effect(
            instruction.opcode,
            arg if instruction.opcode >= dis.HAVE_ARGUMENT else None,
            jump=False,
        )
        result = EMPTY
        if name.startswith("INPLACE_") or self._in_place(instruction):
            result = frozenset(c for c in taken[1] if c[0][0] in ROOTS)
        stack.extend([result] * max(0, gives))

    @staticmethod
    def _in_place(instruction: dis.Instruction) -> bool:
        return instruction.opname == "BINARY_OP" and instruction.argrepr.endswith("=")
