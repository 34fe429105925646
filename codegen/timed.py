"""A variant of a translation unit that says when each of its kernels ended, for the profiler.

The kernels are the same text; between their calls the time is read. Only rehearsals run it
(`runtime.rehearsal`): what users get is computed by the unit without clocks.
"""

from __future__ import annotations

import re

CLOCK = """\
#include <time.h>
static int64_t tg_nanoseconds(void)
{
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
"""
_CALL = re.compile(r"^    kernel_\d+\(.*\);$", re.MULTILINE)
_HEAD = "int tg_run(void **args)\n{\n"


def timed_code(code: str, arguments: int) -> str:
    """The C of a unit whose `tg_run` writes the times before and after each kernel.

    Args:
        code: of a unit, without comments.
        arguments: how many pointers `tg_run` takes; one more follows, to an int64 for the start
            and one for each kernel.
    Example:
        >>> code = "int tg_run(void **args)\\n{\\n    kernel_0(args[0]);\\n    return 0;\\n}\\n"
        >>> print(timed_code(code, 1).partition(CLOCK)[2], end="")
        int tg_run(void **args)
        {
            int64_t *tg_times = args[1];
            tg_times[0] = tg_nanoseconds();
            kernel_0(args[0]);
            tg_times[1] = tg_nanoseconds();
            return 0;
        }
    """
    before, head, body = code.partition(_HEAD)  # its calls are the last lines
    assert head, "a unit without tg_run"
    kernels = 0

    def timed(call: re.Match[str]) -> str:
        nonlocal kernels
        kernels += 1
        return f"{call[0]}\n    tg_times[{kernels}] = tg_nanoseconds();"

    calls = _CALL.sub(timed, body)
    first = _CALL.search(body)
    assert first is not None, "a unit without kernels"
    at = first.start()
    start = "    tg_times[0] = tg_nanoseconds();\n"
    names = f"    int64_t *tg_times = args[{arguments}];\n"
    return f"{before}{CLOCK}{head}{names}{calls[:at]}{start}{calls[at:]}"
