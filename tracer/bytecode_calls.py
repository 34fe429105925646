"""Instructions that make containers, shuffle the stack and call. Start at `Calls._called`."""

from __future__ import annotations

import dis
from typing import Any

from tracegrad.tracer.bytecode_chains import (
    EMPTY,
    KEPT,
    LOOKS_AT_NOTHING,
    MADE,
    NULL,
    ROOTS,
    TRANSPARENT,
    WIDEST,
    WRAPPED,
    Chains,
    Uses,
    constant,
    deepen,
    is_constant,
    pop,
)


class Calls(Uses):
    """One method per instruction, named after it; `at` is the instruction, `stack` the stack."""

    # ---- new containers --------------------------------------------------------------------------

    def _build(self, count: int, stack: list[Chains]) -> None:
        parts = [pop(stack) for _ in range(count)]
        kept = frozenset(c for part in parts for c in part if c[0][0] in KEPT)
        if len(kept) > WIDEST:
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
        self._use(pop(stack), "contents")
        stack.append(EMPTY)

    def _format_value(self, at: dis.Instruction, stack: list[Chains]) -> None:
        if (at.arg or 0) & 0x04:
            pop(stack)
        self._use(pop(stack), "contents")
        stack.append(EMPTY)

    def _list_append(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._gather([pop(stack)], at.arg or 1, stack)

    _set_add = _list_append

    def _map_add(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._gather([pop(stack), pop(stack)], at.arg or 1, stack)

    def _list_extend(self, at: dis.Instruction, stack: list[Chains]) -> None:
        added = pop(stack)
        self._use(added, "contents")
        self._gather([added], at.arg or 1, stack)

    _set_update = _dict_update = _dict_merge = _list_extend

    def _gather(self, added: list[Chains], depth: int, stack: list[Chains]) -> None:
        chains = frozenset(c for part in added for c in part if c[0][0] in KEPT)
        if depth <= len(stack) and len(stack[-depth] | chains) <= WIDEST:
            stack[-depth] = stack[-depth] | (chains | WRAPPED if chains else EMPTY)
        else:
            self._use(chains, "deep")

    def _list_to_tuple(self, at: dis.Instruction, stack: list[Chains]) -> None:
        """The elements stay."""

    def _call_intrinsic_1(self, at: dis.Instruction, stack: list[Chains]) -> None:
        if at.arg != 6:  # 6: list to tuple
            self._use(pop(stack), "deep")
            stack.append(EMPTY)

    def _return_value(self, at: dis.Instruction, stack: list[Chains]) -> None:
        result = pop(stack)  # objects are seen when they are returned; not so in an iterator
        if result & WRAPPED:
            self._use(result, "deep")

    # ---- the stack itself ------------------------------------------------------------------------

    def _copy(self, at: dis.Instruction, stack: list[Chains]) -> None:
        depth = at.arg or 1
        stack.append(stack[-depth] if depth <= len(stack) else EMPTY)

    def _swap(self, at: dis.Instruction, stack: list[Chains]) -> None:
        depth = at.arg or 2
        deepen(stack, depth)
        stack[-1], stack[-depth] = stack[-depth], stack[-1]

    def _dup_top(self, at: dis.Instruction, stack: list[Chains]) -> None:
        deepen(stack, 1)
        stack.append(stack[-1])

    def _dup_top_two(self, at: dis.Instruction, stack: list[Chains]) -> None:
        deepen(stack, 2)
        stack.extend(stack[-2:])

    def _rotate(self, depth: int, stack: list[Chains]) -> None:
        deepen(stack, depth)
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
        self._use(pop(stack), "contents")

    _jump_if_false_or_pop = _jump_if_true_or_pop

    # ---- calls -----------------------------------------------------------------------------------

    def _make_function(self, at: dis.Instruction, stack: list[Chains]) -> None:
        effect = dis.stack_effect(at.opcode, at.arg, jump=False)
        for _ in range(1 - effect):
            pop(stack)
        stack.append(MADE)

    def _set_function_attribute(self, at: dis.Instruction, stack: list[Chains]) -> None:
        made = pop(stack)
        pop(stack)
        stack.append(made)

    def _call_function(self, at: dis.Instruction, stack: list[Chains]) -> None:
        arguments = [pop(stack) for _ in range(at.arg or 0)][::-1]
        stack.append(self._called(pop(stack), EMPTY, arguments))

    def _call_function_kw(self, at: dis.Instruction, stack: list[Chains]) -> None:
        pop(stack)
        self._call_function(at, stack)

    def _call(self, at: dis.Instruction, stack: list[Chains]) -> None:
        arguments = [pop(stack) for _ in range(at.arg or 0)][::-1]
        upper, lower = pop(stack), pop(stack)
        if upper == NULL or lower == NULL:
            callee, receiver = (lower if upper == NULL else upper), EMPTY
        else:
            callee, receiver = lower, upper
        stack.append(self._called(callee, receiver, arguments))

    _call_method = _call

    def _call_kw(self, at: dis.Instruction, stack: list[Chains]) -> None:
        pop(stack)
        self._call(at, stack)

    def _call_function_ex(self, at: dis.Instruction, stack: list[Chains]) -> None:
        arguments = [pop(stack) for _ in range(1 + ((at.arg or 0) & 1))][::-1]
        callee = pop(stack)
        if "PUSH_NULL" in dis.opmap:
            below = pop(stack)
            callee = below if callee == NULL else callee
        for chains in arguments:
            self._use(chains, "contents")
        stack.append(self._called(callee, EMPTY, [self._inside(a) for a in arguments]))

    def _called(self, callee: Chains, receiver: Chains, arguments: list[Chains]) -> Chains:
        names = {
            step[1] for chain in callee for step in chain[-1:] if step[0] in ("global", "attr")
        }
        if names & {"getattr", "hasattr", "setattr", "delattr"} and len(arguments) > 1:
            if is_constant(arguments[1]):
                return self._attribute_call(names, arguments)
        if names == {"type"} and len(arguments) == 1:
            return self._extend(arguments[0], ("type", None))
        if names and names <= LOOKS_AT_NOTHING:
            return EMPTY
        self._use(receiver, "contents")
        if not callee or not callee <= MADE:
            outside = frozenset(c for c in callee if c[0][0] in ROOTS)
            for chains in arguments:
                self._use(chains, "argument", outside)
        if names & TRANSPARENT:
            return self._inside(frozenset().union(receiver, *arguments)) | WRAPPED
        return EMPTY

    def _attribute_call(self, names: set[Any], arguments: list[Chains]) -> Chains:
        step = ("attr", constant(arguments[1]))
        if names & {"setattr", "delattr"}:
            for value in arguments[2:]:
                self._use(value, "deep")
            self._extend(arguments[0], step, "store")
            return EMPTY
        found = self._extend(arguments[0], step)
        return found.union(*arguments[2:]) if "getattr" in names else EMPTY
