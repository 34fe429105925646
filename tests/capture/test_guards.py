"""What a run reads from outside becomes guards; what cannot be guarded or replayed is reported."""

from __future__ import annotations

import copy
import gc
import linecache
import logging  # noqa: F401  (programs below read it)
import math
import sys
import time
import types

import numpy as np
import pytest
from guard_cases import CASES, MODEL, ROUNDABOUT, SPACE, Case

import tracegrad as tg
from tracegrad.tracer.guards import Guard, Observation
from tracegrad.tracer.observe import Observer


def program(source: str, name: str) -> dict:
    """The variables of a small program, with lines that `linecache` knows."""
    filename = f"<program {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    space: dict = {"__name__": "case", "x": tg.ones(3)}
    sys.modules.setdefault("case", types.ModuleType("case"))  # dataclasses look for it
    exec(compile(source, filename, "exec"), space)
    return space


def observe(space: dict, call: str = "f(x)") -> Observation:
    """Watch one call of `f`, with the arguments written in `call`."""
    arguments = eval(f"(lambda f: {call})", space)(lambda *given: given)
    with Observer(space["f"], arguments) as observer:
        space["f"](*arguments)
    return observer.finish()


def told(guards: tuple[Guard, ...], space: dict) -> dict[str, str]:
    """Name -> kind of the guards, less the function itself, libraries and built-ins."""
    own = getattr(space["f"], "__name__", "")
    found: dict[str, list[str]] = {}
    for guard in guards:
        value = space.get(guard.name)
        module = isinstance(value, types.ModuleType) and not value.__name__.startswith("case")
        library = isinstance(value, type) and value.__module__ in ("types", "functools", "enum")
        if guard.name == own and guard.current.endswith("_0") or module or library:
            continue
        if guard.kind == "layout":  # beside the identity of each tensor
            continue
        if guard.name == "__class__":  # read by super() in some versions of Python only
            continue
        if guard.expected != "absent" or "." in guard.name:
            found.setdefault(guard.name, []).append(guard.kind)
    return {name: "+".join(kinds) for name, kinds in found.items()}


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_guards_hold_until_something_read_changes(case: Case) -> None:
    space = program(case.source, case.name)
    seen = observe(space, case.call)
    assert seen.problems == () and seen.side_effects == ()
    assert told(seen.guards, space) == case.guards
    for guard in seen.guards:
        assert eval(guard.text, dict(guard.bindings)), guard.text
        assert guard.holds()

    exec(case.change, space)
    broken = [g for g in seen.guards if not g.holds()]
    assert {g.name for g in broken} - set(case.also) == {case.fails}
    text = next(g for g in broken if g.name == case.fails).explain()
    line = case.source.splitlines()[case.line - 1].strip()
    assert text.startswith(f"{case.fails} was ") and line in text
    before, after = text.split(", now it is ")
    assert case.before in before and case.after in after
    assert f"<program {case.name}>:{case.line}" in text


@pytest.mark.parametrize("row", ROUNDABOUT.values(), ids=ROUNDABOUT)
def test_no_roundabout_read_goes_unseen(row: tuple[str, str]) -> None:
    source, change = row
    space = program(source, "roundabout")
    seen = observe(space)
    if not seen.problems and not seen.side_effects:
        assert all(g.holds() for g in seen.guards)
        exec(change, space)
        assert not all(g.holds() for g in seen.guards)


def test_binding_names_are_unique_in_an_observation() -> None:
    space = program("a = 1\nb = [2]\ndef f(x):\n    return x * a * b[0]", "names")
    guards = observe(space).guards
    names = [name for guard in guards for name in guard.bindings]
    assert len(names) == len(set(names)) > len(guards)
    together = {k: v for guard in guards for k, v in guard.bindings.items()}
    assert eval(" and ".join(f"({g.text})" for g in guards), together)


def test_tensors_whose_identity_is_guarded_are_listed() -> None:
    source = MODEL + (
        "m, w, L, unread = Model(w=tg.ones(3), part=Model(v=tg.ones(3))), tg.ones(3), "
        "[tg.ones(3)], tg.ones(3)\n"
        "def f(x):\n    y = x * 2\n    return sum(L) + m.w * w * y"
    )
    space = program(source, "tensors")
    m = space["m"]
    wanted = [m.w, m.part.v, space["w"], space["L"][0]]
    listed = observe(space).tensors
    assert {id(t) for t in listed} == {id(t) for t in wanted}


PURE = {
    "math": "import math\ndef f(x):\n    return x * math.pi + math.sin(2.0)",
    "numpy constants": "import numpy as np\ndef f(x):\n    return x * np.pi + np.float32(2)",
    "tracegrad": "import tracegrad as tg\ndef f(x):\n    return tg.sin(x).sum() + tg.exp(x).mean()",
    "locals": "def f(x):\n    L = []\n    for k in range(3):\n        L.append(x * k)\n"
    "    d = {'a': L}\n    d['b'] = 2\n    return sum(d['a'])",
    "own objects": "class C:\n    def __init__(self, k):\n        self.k, self.n = k, 0\n"
    "    def up(self):\n        self.n += 1\n        return self\n"
    "def f(x):\n    return x * C(2).up().n",
    "own closure": "def f(x):\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n"
    "        return n\n    return x * up() * up()",
    "no_grad": "import tracegrad as tg\ndef f(x):\n    with tg.no_grad():\n        return x * 2",
    "format": "def f(x):\n    return x if f'{x.shape}' != '' else -x",
    "own class": "def f(x):\n    class C:\n        k = 2\n        j = k + 1\n    return x * C.j",
    "reraised": "def f(x):\n    try:\n        raise ValueError('a')\n    except ValueError as e:\n"
    "        return x * len(e.args)",
    "random of tracegrad": "import tracegrad as tg\ndef f(x):\n    return x * tg.rand(3)",
}


@pytest.mark.parametrize("source", PURE.values(), ids=PURE)
def test_pure_programs_have_no_problem_and_no_side_effect(source: str) -> None:
    seen = observe(program(source, "pure"))
    assert seen.problems == () and seen.side_effects == ()
    assert all(g.holds() for g in seen.guards) and seen.tensors == ()
    kinds = {g.kind for g in seen.guards if g.expected != "absent" and g.name != "__name__"}
    assert kinds <= {"identity", "value"}  # modules and classes, and constants such as math.pi


SIDE_EFFECTS = {
    "print": ("def f(x):\n    print(1)", "print", 2),
    "open": ("import os\ndef f(x):\n    open(os.devnull).close()", "open", 3),
    "exec": ("def f(x):\n    exec('1')", "exec", 2),
    "stdout": ("import sys\ndef f(x):\n    sys.stdout.write('a')", "write", 3),
    "random.random": ("import random\ndef f(x):\n    return x * random.random()", "random.random", 3),
    "random.uniform": ("import random\ndef f(x):\n    return random.uniform(0, 1)", "random.uniform", 3),
    "numpy.random": ("import numpy as np\ndef f(x):\n    return np.random.rand()", "numpy.random.rand", 3),
    "time": ("import time\ndef f(x):\n    return x * time.time()", "time.time", 3),
    "datetime": ("import datetime\ndef f(x):\n    return datetime.datetime.now()", "datetime.now", 3),
    "environment": ("import os\ndef f(x):\n    return os.getenv('HOME')", "os.getenv", 3),
    "working directory": ("import os\ndef f(x):\n    return os.getcwd()", ".getcwd", 3),
    "logging": ("import logging\nlog = logging.getLogger('a')\ndef f(x):\n    log.info('b')",
                "logging.info", 4),
    "warnings": ("import warnings\ndef f(x):\n    with warnings.catch_warnings():\n        pass",
                 "warnings.", 3),
    "global counter": ("n = 0\ndef f(x):\n    global n\n    n += 1", "global n changed", 4),
    "new global": ("def f(x):\n    global fresh\n    fresh = 1", "global fresh changed", 3),
    "nonlocal": ("def make():\n    n = 0\n    def f(x):\n        nonlocal n\n        n += 1\n"
                 "    return f\nf = make()", "nonlocal n changed", 5),
    "list.append": ("L = []\ndef f(x):\n    L.append(1)", "list L changed", 3),
    "dict item": ("D = {}\ndef f(x):\n    D['a'] = 1", "dict D changed", 3),
    "set.add": ("S = set()\ndef f(x):\n    S.add(1)", "set S changed", 3),
    "list through a helper": ("L = []\ndef g(l):\n    l.append(1)\ndef f(x):\n    g(L)",
                              "list l changed", 3),
    "list +=": ("L = []\ndef f(x):\n    k = L\n    k += [1]", "list L changed", 4),
    "deleted item": ("D = {'a': 1}\ndef f(x):\n    del D['a']", "dict D changed", 3),
    "attribute": (SPACE + "c = Space(n=0)\ndef f(x):\n    c.n += 1", "attribute c.n changed", 4),
    "new attribute": (SPACE + "c = Space()\ndef f(x):\n    c.n = 1", "attribute c.n changed", 4),
    "setattr": (SPACE + "c = Space()\ndef f(x):\n    setattr(c, 'n', 1)", "attribute c.n changed", 4),
    "deleted attribute": (SPACE + "c = Space(n=1)\ndef f(x):\n    del c.n", "attribute c.n changed", 4),
    "attribute of self": ("class C:\n    calls = 0\n    def __call__(self, x):\n"
                          "        self.calls += 1\nf = C()", "attribute self.calls changed", 4),
    "attribute of a module": (MODEL + "m = Model(n=0)\ndef f(x):\n    m.n += 1",
                              "attribute m.n changed", 10),
    "attribute of a function": ("def f(x):\n    f.calls = 1", "attribute f.calls changed", 2),
    "cached property": ("import functools\nclass C:\n    @functools.cached_property\n    def p(self):\n"
                        "        return 2\nc = C()\ndef f(x):\n    return x * c.p",
                        "attribute c.p changed", 8),
}  # fmt: skip


@pytest.mark.parametrize("row", SIDE_EFFECTS.values(), ids=SIDE_EFFECTS)
def test_side_effects_are_found_with_their_line(row: tuple[str, str, int]) -> None:
    source, what, line = row
    effects = observe(program(source, "effect")).side_effects
    found = [e for e in effects if what in e.what]
    assert found, effects
    assert found[0].location is not None and found[0].location.line == line
    assert source.splitlines()[line - 1].strip() in str(found[0])


def test_argument_that_is_mutated_is_a_side_effect() -> None:
    seen = observe(program("L = [1]\ndef f(x, given):\n    given.append(x)", "given"), "f(x, L)")
    assert [e.what for e in seen.side_effects] == ["list given changed"]


PROBLEMS = {
    "numpy array": ("import numpy as np\na = np.ones(3)\ndef f(x):\n    return x * 2 if a.ndim else x",
                    "a", "tracegrad.tensor", 4),
    "generator object": ("g = iter(k for k in [1])\ndef f(x):\n    return x * next(g)",
                         "g", "argument", 3),
    "numpy generator": ("import numpy as np\nr = np.random.default_rng(0)\ndef f(x):\n"
                        "    return x * r.normal()", "r", "argument", 4),
    "large list": ("L = [1] * 300\ndef f(x):\n    return x * sum(L)", "L", "argument", 3),
    "array in an object": (SPACE + "import numpy as np\nc = Space(a=np.ones(2))\ndef f(x):\n"
                           "    return x * float(c.a[0])", "c.a", "tracegrad.tensor", 5),
    "array in a list": ("import numpy as np\nL = [np.ones(2)]\ndef f(x):\n    return x * len(L)",
                        "L[0]", "tracegrad.tensor", 4),
    "globals()": ("def f(x):\n    return x * len(globals())", "globals()", "Name the variables", 2),
    "module by computed name": ("import types\nm = types.ModuleType('case_m')\nm.k = 2\ndef f(x):\n"
                                "    n = 'K'.lower()\n    return x * getattr(m, n)", "m", "Name the", 6),
    "open file": ("h = open('/dev/null')\ndef f(x):\n    return x * h.fileno()", "h", "argument", 3),
    "own iterator": ("L = iter([1, 2])\ndef f(x):\n    for k in L:\n        x = x * k",
                     "L", "argument", 3),
}  # fmt: skip


@pytest.mark.parametrize("row", PROBLEMS.values(), ids=PROBLEMS)
def test_what_cannot_be_guarded_is_a_problem_with_a_remedy(row: tuple[str, str, str, int]) -> None:
    source, name, remedy, line = row
    problems = [p for p in observe(program(source, "problem")).problems if p.name == name]
    assert len(problems) == 1
    assert remedy in problems[0].remedy
    assert problems[0].location is not None and problems[0].location.line == line
    assert source.splitlines()[line - 1].strip() in str(problems[0])


def test_containers_and_numbers_among_the_arguments_need_no_guard() -> None:
    source = "P = {'w': 2.0, 'L': [1.0]}\ndef f(x, p, k):\n    return x * p['w'] * p['L'][0] * k"
    seen = observe(program(source, "keyed"), "f(x, P, 3)")
    assert [g.name for g in seen.guards] == ["f"] and seen.problems == ()


def test_epoch_argument_gets_its_epoch_guard() -> None:
    space = program(MODEL + "m = Model(w=tg.ones(3))\ndef f(x, m):\n    return x * m.w", "given")
    seen = observe(space, "f(x, m)")
    epoch = [g for g in seen.guards if g.kind == "epoch"]
    assert len(epoch) == 1 and [id(t) for t in seen.tensors] == [id(space["m"].w)]
    space["m"].w = tg.ones(3)
    assert not epoch[0].holds()


def test_exception_leaves_the_profiler_restored() -> None:
    space = program("def f(x):\n    raise KeyError('gone')", "raises")
    with pytest.raises(KeyError, match="gone"):
        observe(space)
    assert sys.getprofile() is None


def test_existing_profiler_is_called_and_restored() -> None:
    seen: list[str] = []

    def profiler(frame, event, arg) -> None:
        if frame.f_code.co_name == "f":
            seen.append(event)

    space = program("def f(x):\n    return x * 2", "profiled")
    sys.setprofile(profiler)
    try:
        observe(space)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert seen == ["call", "return"]


def test_observer_lets_go_of_what_the_run_made() -> None:
    class Big:
        pass

    space = program("made = []\ndef f(x):\n    make()\n    return x", "memory")
    space["make"] = lambda: Big() and None
    observation = observe(space)
    gc.collect()
    assert observation and not any(isinstance(o, Big) for o in gc.get_objects())


def test_global_read_by_several_functions_is_guarded_once() -> None:
    source = "k = 2\ndef g(x):\n    return x * k\ndef f(x):\n    return g(x) + g(x) * k"
    seen = observe(program(source, "twice"))
    assert [g.name for g in seen.guards].count("k") == 1


def test_analysis_is_done_once_per_code_object() -> None:
    source = "k = 2.0\ndef g(x):\n    return x * k\ndef f(x):\n    for _ in range(2000): x = g(x)\n" \
             "    return math.tanh(x)"  # fmt: skip
    space = program("import math\n" + source, "fast")
    space["x"] = 0.5
    observe(space)
    start = time.perf_counter()
    observe(space)
    assert time.perf_counter() - start < 1.0  # 2000 calls and one look at the heap
    assert math.isfinite(space["f"](1e-300))


def test_compile_time_modules_are_told_apart() -> None:
    from tracegrad.tracer.modules import is_user_file, is_user_module

    assert is_user_file(__file__) and not is_user_file(np.__file__)
    assert not is_user_file(gc.__class__.__name__ and linecache.__file__)
    assert not is_user_module(math) and not is_user_module(tg) and is_user_module(pytest)


def test_a_module_that_goes_back_to_what_it_was_is_captured_once_for_each_state() -> None:
    model = tg.nn.Sequential(tg.nn.Linear(3, 3), tg.nn.BatchNorm1d(3), tg.nn.Dropout(0.5))
    twin = copy.deepcopy(model)
    compiled = tg.compile(model)
    x = tg.randn(8, 3)
    for k in range(12):
        model.train(k % 3 > 0)
        twin.train(k % 3 > 0)
        tg.manual_seed(k)
        want = twin(x)
        tg.manual_seed(k)
        np.testing.assert_allclose(compiled(x).detach(), want.detach(), rtol=1e-5, atol=1e-6)
    assert compiled.cache_info().traces == 2, compiled.explain()


def test_a_module_that_holds_something_else_of_the_same_name_is_captured_again() -> None:
    model = tg.nn.Linear(2, 2)
    model.scale = 2.0
    compiled = tg.compile(lambda x: model(x) * model.scale)
    x, old = tg.ones(1, 2), model.weight
    changes = [
        lambda: setattr(model, "scale", 3.0), lambda: setattr(model, "scale", 2.0),
        lambda: setattr(model, "weight", tg.nn.Parameter(tg.zeros(2, 2))),
        lambda: setattr(model, "weight", old), lambda: setattr(model, "scale", True),
        lambda: model.register_forward_hook(lambda m, args, out: out + 1),
        lambda: model._forward_hooks.clear(), lambda: setattr(model, "scale", 1),
        lambda: setattr(model, "scale", -0.0), lambda: setattr(model, "scale", 0.0),
    ]  # fmt: skip
    for change in changes:
        compiled(x)
        change()
        want = model(x) * model.scale
        assert compiled(x).detach().numpy().tobytes() == want.detach().numpy().tobytes()
