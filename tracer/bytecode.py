"""What a code object reads and writes outside itself, found by abstract interpretation of bytecode.

Every place on the evaluation stack holds a set of *chains*: ways to write a value that came from
outside, such as `cfg.lr` = (("global", "cfg"), ("attr", "lr")). Instructions move chains, extend
them, or use them up; each use is a `Use` with its line. Local variables are followed without regard
to order, branches are joined by union: a chain may be listed that no run reads, but none is missed.
Instructions unknown here use up all they could touch. Works on CPython 3.10 to 3.13.
Start reading at `analyse`, then `_Interpreter.run`.
"""

from __future__ import annotations

import dis
import types
from dataclasses import dataclass
from functools import lru_cache
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

_ROOTS = ("global", "free", "local", "import")
_KEPT = (*_ROOTS, "made", "wrapped")
_LONGEST, _WIDEST = 7, 24

# Built-ins whose result holds (elements of) their arguments; then methods of containers.
TRANSPARENT = frozenset(
    "enumerate zip reversed sorted list tuple set frozenset dict iter next min max".split()
    + "get values items keys pop popitem setdefault copy".split()
)
# Built-ins that look at nothing of their argument but its class or identity.
LOOKS_AT_NOTHING = frozenset("isinstance issubclass id callable super".split())

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
        "POP_TOP RAISE_VARARGS POP_EXCEPT GEN_START POP_JUMP_IF_NONE "
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
    **dict.fromkeys("YIELD_VALUE CALL_INTRINSIC_1".split(), (1, "deep")),
    **dict.fromkeys("IS_OP JUMP_IF_NOT_EXC_MATCH".split(), (2, "")),
    **dict.fromkeys("COMPARE_OP CONTAINS_OP BINARY_OP FORMAT_WITH_SPEC".split(), (2, "operate")),
    "SET_FUNCTION_ATTRIBUTE": (1, ""),
}


@dataclass(frozen=True)
class Use:
    """One use of a chain.

    `how` is "read" (its value was loaded), "contents" (a container was looked into), "operate" (an
    operand: what a container holds lives on in the result), "deep" (it went where it cannot be
    followed), "argument" (passed to one of `callees`; unknown where that
    is empty), "store" (assigned or deleted; the chain names the place).
    """

    chain: Chain
    how: str
    line: int
    callees: Chains = EMPTY


@lru_cache(maxsize=4096)
def analyse(code: types.CodeType) -> tuple[Use, ...]:
    """All uses of outside values by `code`, in the order of first sight; cached per code object."""
    interpreter = _Interpreter(code)
    interpreter.run()
    return tuple(interpreter.uses)


class _Interpreter:
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

    # ---- control flow ---------------------------------------------------------------------------

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
                merged = _join(states.get(successor), stack, self.code.co_stacksize)
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

    # ---- instructions ---------------------------------------------------------------------------

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
        taken = [_pop(stack) for _ in range(takes)]
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
            result = frozenset(c for c in taken[1] if c[0][0] in _ROOTS)
        stack.extend([result] * max(0, gives))

    @staticmethod
    def _in_place(instruction: dis.Instruction) -> bool:
        return instruction.opname == "BINARY_OP" and instruction.argrepr.endswith("=")

    def _use(self, chains: Chains, how: str, callees: Chains = EMPTY) -> None:
        if how:
            for chain in chains:
                if chain[0][0] in _ROOTS:
                    self.uses.setdefault(Use(chain, how, self.line, callees))

    def _extend(self, chains: Chains, step: Step, how: str = "read") -> Chains:
        made = set()
        for chain in chains:
            if chain[0][0] not in _ROOTS:
                continue
            if len(chain) >= _LONGEST:
                self._use(frozenset({chain}), "deep")
            else:
                made.add((*chain, step))
        if len(made) > _WIDEST:
            self._use(frozenset(made), "deep")
            made.clear()
        result = frozenset(made)
        self._use(result, how)
        return result

    def _root(self, kind: str, name: str) -> Chains:
        result: Chains = frozenset({((kind, name),)})
        self._use(result, "read")
        return result

    # ---- variables ------------------------------------------------------------------------------

    def _variable(self, name: str) -> Chains:
        found = self.variables.get(name, EMPTY)
        if name in self.code.co_cellvars:  # inner functions may assign it
            found |= UNKNOWN
        if name in self.parameters:
            found |= self._root("local", name)
        if name in self.code.co_freevars:
            found |= self._root("free", name)
        return found

    def _assign(self, name: str, chains: Chains) -> None:
        old = self.variables.get(name, EMPTY)
        new = old | (frozenset(c for c in chains if c[0][0] != "null") or UNKNOWN)
        if len(new) > _WIDEST:
            self._use(new, "deep")
            new = old
        if new != old:
            self.variables[name] = new
            self.changed = True
        if name in self.code.co_freevars:
            self._use(chains, "deep")
            self._use(frozenset({(("free", name),)}), "store")

    def _load_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._variable(at.argval))

    _load_fast_check = _load_fast_and_clear = _load_deref = _load_fast

    def _load_classderef(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._variable(at.argval))

    def _load_from_dict_or_deref(self, at: dis.Instruction, stack: list[Chains]) -> None:
        _pop(stack)
        stack.append(self._variable(at.argval))

    def _load_fast_load_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.extend(self._variable(name) for name in at.argval)

    def _store_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval, _pop(stack))

    _store_fast_maybe_null = _store_deref = _store_fast

    def _store_fast_load_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval[0], _pop(stack))
        stack.append(self._variable(at.argval[1]))

    def _store_fast_store_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        for name in at.argval:
            self._assign(name, _pop(stack))

    def _delete_deref(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval, EMPTY)

    def _store_name(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval, _pop(stack))

    def _load_name(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._root("global", at.argval) | self.variables.get(at.argval, EMPTY))

    def _load_from_dict_or_globals(self, at: dis.Instruction, stack: list[Chains]) -> None:
        _pop(stack)
        self._load_name(at, stack)

    def _load_global(self, at: dis.Instruction, stack: list[Chains]) -> None:
        made = [self._root("global", at.argval)]
        if "PRECALL" in dis.opmap or "KW_NAMES" in dis.opmap:  # 3.11, 3.12
            made = [NULL, *made] if at.arg and at.arg & 1 else made
        elif "CALL_KW" in dis.opmap:  # 3.13
            made = [*made, NULL] if at.arg and at.arg & 1 else made
        stack.extend(made)

    def _store_global(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._use(_pop(stack), "deep")
        self._use(frozenset({(("global", at.argval),)}), "store")

    def _delete_global(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._use(frozenset({(("global", at.argval),)}), "store")

    def _load_const(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(frozenset({(("const", at.argval),)}))

    def _push_null(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(NULL)

    def _import_name(self, at: dis.Instruction, stack: list[Chains]) -> None:
        names, level = _constant(_pop(stack)), _constant(_pop(stack))
        name = at.argval if names is not None else at.argval.split(".")[0]
        stack.append(self._root("import", "." * (level or 0) + name))

    def _import_from(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._extend(stack[-1] if stack else EMPTY, ("attr", at.argval)))

    # ---- attributes and elements ----------------------------------------------------------------

    def _load_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        holder = _pop(stack)
        stack.append(self._extend(holder, ("attr", at.argval)))
        if "KW_NAMES" in dis.opmap and "PRECALL" not in dis.opmap or "CALL_KW" in dis.opmap:
            if at.arg and at.arg & 1:  # 3.12 on: the method, and what it is bound to
                stack.append(holder)

    def _load_method(self, at: dis.Instruction, stack: list[Chains]) -> None:
        holder = _pop(stack)
        stack.extend([self._extend(holder, ("attr", at.argval)), holder])

    def _load_super_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        del stack[-3:]
        stack.append(EMPTY)
        if at.arg and at.arg & 1:
            stack.append(EMPTY)

    def _store_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        holder, value = _pop(stack), _pop(stack)
        self._use(value, "deep")
        self._extend(holder, ("attr", at.argval), "store")

    def _delete_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._extend(_pop(stack), ("attr", at.argval), "store")

    def _element(self, holder: Chains, key: Chains) -> Chains:
        if key & SLICE:
            self._use(holder, "contents")
            return self._inside(holder) | WRAPPED
        if _is_constant(key) and not holder & WRAPPED:
            return self._extend(holder, ("item", _constant(key)))
        self._use(holder, "contents")
        self._use(key, "contents")
        return self._extend(holder, EACH) | holder

    def _binary_subscr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        key, holder = _pop(stack), _pop(stack)
        stack.append(self._element(holder, key))

    def _binary_slice(self, at: dis.Instruction, stack: list[Chains]) -> None:
        del stack[-2:]
        stack.append(self._element(_pop(stack), SLICE))

    def _store_subscr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        key, holder, value = _pop(stack), _pop(stack), _pop(stack)
        self._use(value, "deep")
        self._use(key, "contents")
        self._use(holder, "contents")

    def _delete_subscr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        _pop(stack)
        self._use(_pop(stack), "contents")

    def _store_slice(self, at: dis.Instruction, stack: list[Chains]) -> None:
        del stack[-2:]
        self._use(_pop(stack), "contents")
        self._use(_pop(stack), "deep")

    def _build_slice(self, at: dis.Instruction, stack: list[Chains]) -> None:
        for _ in range(at.arg or 2):
            _pop(stack)
        stack.append(SLICE)

    def _get_iter(self, at: dis.Instruction, stack: list[Chains]) -> None:
        if stack:
            self._use(stack[-1], "contents")

    _get_yield_from_iter = _get_iter

    def _get_len(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._get_iter(at, stack)
        stack.append(EMPTY)

    def _inside(self, chains: Chains) -> Chains:
        return self._extend(chains, EACH) | chains

    def _for_iter(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._inside(stack[-1] if stack else EMPTY))

    def _unpack_sequence(self, at: dis.Instruction, stack: list[Chains]) -> None:
        whole = _pop(stack)
        self._use(whole, "contents")
        stack.extend([self._inside(whole)] * (at.arg or 0))

    def _unpack_ex(self, at: dis.Instruction, stack: list[Chains]) -> None:
        whole, arg = _pop(stack), at.arg or 0
        self._use(whole, "contents")
        stack.extend([self._inside(whole)] * ((arg & 0xFF) + 1 + (arg >> 8)))

    # ---- new containers -------------------------------------------------------------------------

    def _build(self, count: int, stack: list[Chains]) -> None:
        parts = [_pop(stack) for _ in range(count)]
        kept = frozenset(c for part in parts for c in part if c[0][0] in _KEPT)
        if len(kept) > _WIDEST:
            self._use(kept, "deep")
            kept = EMPTY
        stack.append(kept | WRAPPED if kept else EMPTY)

    def _build_list(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._build(at.arg or 0, stack)

    _build_tuple = _build_set = _build_list

    def _build_map(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._build(2 * (at.arg or 0), stack)

    def _build_const_key_map(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._build((at.arg or 0) + 1, stack)

    def _build_string(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._build(at.arg or 0, stack)
        self._use(_pop(stack), "contents")
        stack.append(EMPTY)

    def _format_value(self, at: dis.Instruction, stack: list[Chains]) -> None:
        if (at.arg or 0) & 0x04:
            _pop(stack)
        self._use(_pop(stack), "contents")
        stack.append(EMPTY)

    def _list_append(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._gather([_pop(stack)], at.arg or 1, stack)

    _set_add = _list_append

    def _map_add(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._gather([_pop(stack), _pop(stack)], at.arg or 1, stack)

    def _list_extend(self, at: dis.Instruction, stack: list[Chains]) -> None:
        added = _pop(stack)
        self._use(added, "contents")
        self._gather([added], at.arg or 1, stack)

    _set_update = _dict_update = _dict_merge = _list_extend

    def _gather(self, added: list[Chains], depth: int, stack: list[Chains]) -> None:
        chains = frozenset(c for part in added for c in part if c[0][0] in _KEPT)
        if depth <= len(stack) and len(stack[-depth] | chains) <= _WIDEST:
            stack[-depth] = stack[-depth] | (chains | WRAPPED if chains else EMPTY)
        else:
            self._use(chains, "deep")

    def _list_to_tuple(self, at: dis.Instruction, stack: list[Chains]) -> None:
        """The elements stay."""

    def _call_intrinsic_1(self, at: dis.Instruction, stack: list[Chains]) -> None:
        if at.arg != 6:  # 6: list to tuple
            self._use(_pop(stack), "deep")
            stack.append(EMPTY)

    def _return_value(self, at: dis.Instruction, stack: list[Chains]) -> None:
        result = _pop(stack)  # objects are seen when they are returned; not so in an iterator
        if result & WRAPPED:
            self._use(result, "deep")

    # ---- the stack itself -----------------------------------------------------------------------

    def _copy(self, at: dis.Instruction, stack: list[Chains]) -> None:
        depth = at.arg or 1
        stack.append(stack[-depth] if depth <= len(stack) else EMPTY)

    def _swap(self, at: dis.Instruction, stack: list[Chains]) -> None:
        depth = at.arg or 2
        _deepen(stack, depth)
        stack[-1], stack[-depth] = stack[-depth], stack[-1]

    def _dup_top(self, at: dis.Instruction, stack: list[Chains]) -> None:
        _deepen(stack, 1)
        stack.append(stack[-1])

    def _dup_top_two(self, at: dis.Instruction, stack: list[Chains]) -> None:
        _deepen(stack, 2)
        stack.extend(stack[-2:])

    def _rotate(self, depth: int, stack: list[Chains]) -> None:
        _deepen(stack, depth)
        stack.insert(len(stack) - depth, stack.pop())

    def _rot_two(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._rotate(2, stack)

    def _rot_three(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._rotate(3, stack)

    def _rot_four(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._rotate(4, stack)

    def _rot_n(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._rotate(at.arg or 1, stack)

    def _jump_if_true_or_pop(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._use(_pop(stack), "contents")

    _jump_if_false_or_pop = _jump_if_true_or_pop

    # ---- calls ----------------------------------------------------------------------------------

    def _make_function(self, at: dis.Instruction, stack: list[Chains]) -> None:
        effect = dis.stack_effect(at.opcode, at.arg, jump=False)
        for _ in range(1 - effect):
            _pop(stack)
        stack.append(MADE)

    def _set_function_attribute(self, at: dis.Instruction, stack: list[Chains]) -> None:
        made = _pop(stack)
        _pop(stack)
        stack.append(made)

    def _call_function(self, at: dis.Instruction, stack: list[Chains]) -> None:
        arguments = [_pop(stack) for _ in range(at.arg or 0)][::-1]
        stack.append(self._called(_pop(stack), EMPTY, arguments))

    def _call_function_kw(self, at: dis.Instruction, stack: list[Chains]) -> None:
        _pop(stack)
        self._call_function(at, stack)

    def _call(self, at: dis.Instruction, stack: list[Chains]) -> None:
        arguments = [_pop(stack) for _ in range(at.arg or 0)][::-1]
        upper, lower = _pop(stack), _pop(stack)
        if upper == NULL or lower == NULL:
            callee, receiver = (lower if upper == NULL else upper), EMPTY
        else:
            callee, receiver = lower, upper
        stack.append(self._called(callee, receiver, arguments))

    _call_method = _call

    def _call_kw(self, at: dis.Instruction, stack: list[Chains]) -> None:
        _pop(stack)
        self._call(at, stack)

    def _call_function_ex(self, at: dis.Instruction, stack: list[Chains]) -> None:
        arguments = [_pop(stack) for _ in range(1 + ((at.arg or 0) & 1))][::-1]
        callee = _pop(stack)
        if "PUSH_NULL" in dis.opmap:
            below = _pop(stack)
            callee = below if callee == NULL else callee
        for chains in arguments:
            self._use(chains, "contents")
        stack.append(self._called(callee, EMPTY, [self._inside(a) for a in arguments]))

    def _called(self, callee: Chains, receiver: Chains, arguments: list[Chains]) -> Chains:
        names = {
            step[1] for chain in callee for step in chain[-1:] if step[0] in ("global", "attr")
        }
        if names & {"getattr", "hasattr", "setattr", "delattr"} and len(arguments) > 1:
            if _is_constant(arguments[1]):
                return self._attribute_call(names, arguments)
        if names == {"type"} and len(arguments) == 1:
            return self._extend(arguments[0], ("type", None))
        if names and names <= LOOKS_AT_NOTHING:
            return EMPTY
        self._use(receiver, "contents")
        if not callee or not callee <= MADE:
            outside = frozenset(c for c in callee if c[0][0] in _ROOTS)
            for chains in arguments:
                self._use(chains, "argument", outside)
        if names & TRANSPARENT:
            return self._inside(frozenset().union(receiver, *arguments)) | WRAPPED
        return EMPTY

    def _attribute_call(self, names: set[Any], arguments: list[Chains]) -> Chains:
        step = ("attr", _constant(arguments[1]))
        if names & {"setattr", "delattr"}:
            for value in arguments[2:]:
                self._use(value, "deep")
            self._extend(arguments[0], step, "store")
            return EMPTY
        found = self._extend(arguments[0], step)
        return found.union(*arguments[2:]) if "getattr" in names else EMPTY


def _pop(stack: list[Chains]) -> Chains:
    """The top; what lies below the known part of the stack is unknown."""
    return stack.pop() if stack else EMPTY


def _deepen(stack: list[Chains], depth: int) -> None:
    stack[:0] = [EMPTY] * (depth - len(stack))


def _is_constant(chains: Chains) -> bool:
    return len(chains) == 1 and next(iter(chains))[0][0] == "const"


def _constant(chains: Chains) -> Any:
    return next(iter(chains))[0][1] if _is_constant(chains) else None


def _join(
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
