"""Whether code could tell a stand-in for a number from the number: see `tracegrad.tracer.symbolic`.

`isinstance`, arithmetic and comparisons cannot. The type can be asked for, the identity can be, and a
function in C that wants a float raises a TypeError, which code can catch and go on. Such code is
rare, so that it is enough to look for the means. Start reading at `tells_stand_ins`.
"""

from __future__ import annotations

import dis
import functools
import types

_CATCHES = frozenset(("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "JUMP_IF_NOT_EXC_MATCH"))
_PUSHES = "PUSH_EXC_INFO" in dis.opmap
_HARMLESS = (None, True, False, Ellipsis)  # singletons: no number is one


@functools.lru_cache(maxsize=4096)
def tells_stand_ins(code: types.CodeType) -> bool:
    """Whether code mentions `type`, compares identities of more than `None`, or catches errors."""
    if "type" in code.co_names:
        return True
    before: dis.Instruction | None = None
    caught = 0
    for at in dis.get_instructions(code):
        if at.opname in _CATCHES or (at.opname == "IS_OP" and not _is_singleton(before)):
            return True
        if at.opname == "POP_TOP" and before is not None and before.opname == "PUSH_EXC_INFO":
            return True  # a bare `except:`
        if not _PUSHES:  # Python 3.10: an `except:` pops an error, as the end of a `with` does
            caught += (at.opname == "POP_EXCEPT") - (at.opname == "WITH_EXCEPT_START")
        before = at
    return caught > 0


def _is_singleton(at: dis.Instruction | None) -> bool:
    return at is not None and at.opname == "LOAD_CONST" and any(at.argval is x for x in _HARMLESS)
