"""Instructions that load and store: variables, attributes, elements. Start at `Loads._variable`."""

from __future__ import annotations

import dis

from tracegrad.tracer.bytecode_chains import (
    EACH,
    EMPTY,
    NULL,
    SLICE,
    UNKNOWN,
    WIDEST,
    WRAPPED,
    Chains,
    Uses,
    constant,
    is_constant,
    pop,
)


class Loads(Uses):
    """One method per instruction, named after it; `at` is the instruction, `stack` the stack."""

    # ---- variables -------------------------------------------------------------------------------

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
        if len(new) > WIDEST:
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
        pop(stack)
        stack.append(self._variable(at.argval))

    def _load_fast_load_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.extend(self._variable(name) for name in at.argval)

    def _store_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval, pop(stack))

    _store_fast_maybe_null = _store_deref = _store_fast

    def _store_fast_load_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval[0], pop(stack))
        stack.append(self._variable(at.argval[1]))

    def _store_fast_store_fast(self, at: dis.Instruction, stack: list[Chains]) -> None:
        for name in at.argval:
            self._assign(name, pop(stack))

    def _delete_deref(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval, EMPTY)

    def _store_name(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._assign(at.argval, pop(stack))

    def _load_name(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._root("global", at.argval) | self.variables.get(at.argval, EMPTY))

    def _load_from_dict_or_globals(self, at: dis.Instruction, stack: list[Chains]) -> None:
        pop(stack)
        self._load_name(at, stack)

    def _load_global(self, at: dis.Instruction, stack: list[Chains]) -> None:
        made = [self._root("global", at.argval)]
        if "PRECALL" in dis.opmap or "KW_NAMES" in dis.opmap:  # 3.11, 3.12
            made = [NULL, *made] if at.arg and at.arg & 1 else made
        elif "CALL_KW" in dis.opmap:  # 3.13
            made = [*made, NULL] if at.arg and at.arg & 1 else made
        stack.extend(made)

    def _store_global(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._use(pop(stack), "deep")
        self._use(frozenset({(("global", at.argval),)}), "store")

    def _delete_global(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._use(frozenset({(("global", at.argval),)}), "store")

    def _load_const(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(frozenset({(("const", at.argval),)}))

    def _push_null(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(NULL)

    def _import_name(self, at: dis.Instruction, stack: list[Chains]) -> None:
        names, level = constant(pop(stack)), constant(pop(stack))
        name = at.argval if names is not None else at.argval.split(".")[0]
        stack.append(self._root("import", "." * (level or 0) + name))

    def _import_from(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._extend(stack[-1] if stack else EMPTY, ("attr", at.argval)))

    # ---- attributes and elements -----------------------------------------------------------------

    def _load_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        holder = pop(stack)
        stack.append(self._extend(holder, ("attr", at.argval)))
        if "KW_NAMES" in dis.opmap and "PRECALL" not in dis.opmap or "CALL_KW" in dis.opmap:
            if at.arg and at.arg & 1:  # 3.12 on: the method, and what it is bound to
                stack.append(holder)

    def _load_method(self, at: dis.Instruction, stack: list[Chains]) -> None:
        holder = pop(stack)
        stack.extend([self._extend(holder, ("attr", at.argval)), holder])

    def _load_super_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        del stack[-3:]
        stack.append(EMPTY)
        if at.arg and at.arg & 1:
            stack.append(EMPTY)

    def _store_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        holder, value = pop(stack), pop(stack)
        self._use(value, "deep")
        self._extend(holder, ("attr", at.argval), "store")

    def _delete_attr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._extend(pop(stack), ("attr", at.argval), "store")

    def _element(self, holder: Chains, key: Chains) -> Chains:
        if key & SLICE:
            self._use(holder, "contents")
            return self._inside(holder) | WRAPPED
        if is_constant(key) and not holder & WRAPPED:
            return self._extend(holder, ("item", constant(key)))
        self._use(holder, "contents")
        self._use(key, "contents")
        return self._extend(holder, EACH) | holder

    def _binary_subscr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        key, holder = pop(stack), pop(stack)
        stack.append(self._element(holder, key))

    def _binary_slice(self, at: dis.Instruction, stack: list[Chains]) -> None:
        del stack[-2:]
        stack.append(self._element(pop(stack), SLICE))

    def _store_subscr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        key, holder, value = pop(stack), pop(stack), pop(stack)
        self._use(value, "deep")
        self._use(key, "contents")
        self._use(holder, "contents")

    def _delete_subscr(self, at: dis.Instruction, stack: list[Chains]) -> None:
        pop(stack)
        self._use(pop(stack), "contents")

    def _store_slice(self, at: dis.Instruction, stack: list[Chains]) -> None:
        del stack[-2:]
        self._use(pop(stack), "contents")
        self._use(pop(stack), "deep")

    def _build_slice(self, at: dis.Instruction, stack: list[Chains]) -> None:
        for _ in range(at.arg or 2):
            pop(stack)
        stack.append(SLICE)

    def _get_iter(self, at: dis.Instruction, stack: list[Chains]) -> None:
        if stack:
            self._use(stack[-1], "contents")

    _get_yield_from_iter = _get_iter

    def _get_len(self, at: dis.Instruction, stack: list[Chains]) -> None:
        self._get_iter(at, stack)
        stack.append(EMPTY)

    def _for_iter(self, at: dis.Instruction, stack: list[Chains]) -> None:
        stack.append(self._inside(stack[-1] if stack else EMPTY))

    def _unpack_sequence(self, at: dis.Instruction, stack: list[Chains]) -> None:
        whole = pop(stack)
        self._use(whole, "contents")
        stack.extend([self._inside(whole)] * (at.arg or 0))

    def _unpack_ex(self, at: dis.Instruction, stack: list[Chains]) -> None:
        whole, arg = pop(stack), at.arg or 0
        self._use(whole, "contents")
        stack.extend([self._inside(whole)] * ((arg & 0xFF) + 1 + (arg >> 8)))
