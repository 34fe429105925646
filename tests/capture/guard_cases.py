"""Small programs for the tests of guards: what each reads, and a change that must be noticed.

A case is a text that defines `f`, the guards expected (name -> kind, the function itself, imported
modules and built-ins left out), a change (a statement), the guard that then fails, what `explain()`
shows as before and after, and the line that reads it. Start reading at `CASES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    name: str
    source: str
    guards: dict[str, str]
    change: str
    fails: str
    before: str
    after: str
    line: int
    call: str = "f(x)"
    also: tuple[str, ...] = field(default=())  # other guards that the change may break


V, I, T, S = "value", "identity", "tensor", "snapshot"
IS, IE = "identity+snapshot", "identity+epoch"  # where it is, and what is in it

SPACE = "from types import SimpleNamespace as Space\n"
MODEL = """from tracegrad.tracer.epoch import Epoch
import tracegrad as tg
class Model(Epoch):
    def __init__(self, **own):
        for k, v in own.items(): setattr(self, k, v)
    def _epoch_parts(self): return [v for v in vars(self).values() if isinstance(v, Epoch)]
    def _epoch_tensors(self): return [v for v in vars(self).values() if isinstance(v, tg.Tensor)]
"""

CASES = [
    Case("global float", "scale = 2.0\ndef f(x):\n    return x * scale",
         {"scale": V}, "scale = 3.0", "scale", "2.0", "3.0", 3),
    Case("global int becomes bool", "n = 1\ndef f(x):\n    return x * n",
         {"n": V}, "n = True", "n", "1", "True", 3),
    Case("negative zero", "z = 0.0\ndef f(x):\n    return x + z",
         {"z": V}, "z = -0.0", "z", "0.0", "-0.0", 3),
    Case("nan", "z = float('nan')\ndef f(x):\n    return x + z",
         {"z": V}, "z = 1.0", "z", "nan", "1.0", 3),
    Case("infinity", "z = float('inf')\ndef f(x):\n    return x + z",
         {"z": V}, "z = float('-inf')", "z", "inf", "-inf", 3),
    Case("string", "mode = 'sum'\ndef f(x):\n    return x if mode == 'sum' else -x",
         {"mode": V}, "mode = 'mean'", "mode", "'sum'", "'mean'", 3),
    Case("None", "bias = None\ndef f(x):\n    return x if bias is None else x + bias",
         {"bias": V}, "bias = 1", "bias", "None", "1", 3),
    Case("bool", "flag = True\ndef f(x):\n    return x if flag else -x",
         {"flag": V}, "flag = False", "flag", "True", "False", 3),
    Case("complex", "z = 1j\ndef f(x):\n    return abs(z) * x",
         {"z": V}, "z = 2j", "z", "1j", "2j", 3),
    Case("bytes", "z = b'a'\ndef f(x):\n    return x * len(z)",
         {"z": V}, "z = b'ab'", "z", "b'a'", "b'ab'", 3),
    Case("tuple", "shape = (2, 3)\ndef f(x):\n    return x * shape[0]",
         {"shape": V}, "shape = (2, 4)", "shape", "(2, 3)", "(2, 4)", 3),
    Case("tuple of tuples", "p = ((1, 2.0), None)\ndef f(x):\n    return x * p[0][1]",
         {"p": V}, "p = ((1, 0.0), None)", "p", "((1, 2.0), None)", "((1, 0.0), None)", 3),
    Case("frozenset", "s = frozenset('a')\ndef f(x):\n    return x if 'a' in s else -x",
         {"s": V}, "s = frozenset('b')", "s", "'a'", "'b'", 3),
    Case("enum member", "import enum\nclass C(enum.Enum):\n    A = 1\n    B = 2\nc = C.A\n"
         "def f(x):\n    return x if c is C.A else -x",
         {"c": V, "C": I, "C.A": V}, "c = C.B", "c", "C.A", "C.B", 7),
    Case("dtype", "import tracegrad as tg\nd = tg.float32\ndef f(x):\n    return x.to(d)",
         {"d": V}, "d = tg.float64", "d", "float32", "float64", 4),
    Case("numpy scalar", "import numpy as np\ns = np.float32(2)\ndef f(x):\n    return x * s",
         {"s": V}, "s = np.float32(3)", "s", "2.0", "3.0", 4),
    Case("deleted global", "scale = 2.0\ndef f(x):\n    return x * scale",
         {"scale": V}, "del scale", "scale", "2.0", "gone", 3),
    Case("shadowed builtin", "def f(x):\n    return abs(x)",
         {}, "abs = lambda x: x", "abs", "absent", "<lambda>", 2),
    Case("closure cell", "def make(k):\n    def f(x):\n        return x * k\n"
         "    def put(v):\n        nonlocal k\n        k = v\n    return f, put\nf, put = make(2.0)",
         {"k": V}, "put(5.0)", "k", "2.0", "5.0", 3),
    Case("nested closures", "def make(k):\n    def g(x):\n        return x * k\n    def f(x):\n"
         "        return g(x) + 1\n    def put(v):\n        nonlocal k\n        k = v\n"
         "    return f, put\nf, put = make(2.0)",
         {"g": I, "k": V}, "put(5.0)", "k", "2.0", "5.0", 3),
    Case("helper's global", "scale = 2.0\ndef g(x):\n    return x * scale\ndef f(x):\n    return g(x)",
         {"g": I, "scale": V}, "scale = 3.0", "scale", "2.0", "3.0", 3),
    Case("helper replaced", "def g(x):\n    return x * 2\ndef f(x):\n    return g(x)",
         {"g": I}, "g = lambda x: x", "g", "g", "<lambda>", 4),
    Case("helper's code replaced", "def g(x):\n    return x * 2\ndef f(x):\n    return g(x)",
         {"g": I}, "g.__code__ = (lambda x: x).__code__", "g", "g", "g", 4),
    Case("default argument", "def g(x, k=2.0):\n    return x * k\ndef f(x):\n    return g(x)",
         {"g": I}, "g.__defaults__ = (3.0,)", "g", "g", "g", 4),
    Case("own default argument", "def f(x, k=2.0):\n    return x * k",
         {}, "f.__defaults__ = (3.0,)", "f", "f", "f", 1),
    Case("keyword-only default", "def g(x, *, k=2.0):\n    return x * k\ndef f(x):\n    return g(x)",
         {"g": I, "g.__kwdefaults__": S}, "g.__kwdefaults__['k'] = 3.0", "g.__kwdefaults__",
         "{'k': 2.0}", "{'k': 3.0}", 4),
    Case("mutable default", "def g(x, ks=[2.0]):\n    return x * ks[0]\ndef f(x):\n    return g(x)",
         {"g": I, "ks[0]": V}, "g.__defaults__[0][0] = 3.0", "ks[0]", "2.0", "3.0", 2),
    Case("dict item", "CONFIG = {'lr': 0.1, 'unread': 1}\ndef f(x):\n    return x * CONFIG['lr']",
         {"CONFIG": I, "CONFIG['lr']": V}, "CONFIG['lr'] = 0.2", "CONFIG['lr']", "0.1", "0.2", 3),
    Case("nested dict", "C = {'a': {'b': 1}}\ndef f(x):\n    return x * C['a']['b']",
         {"C": I, "C['a']": I, "C['a']['b']": V}, "C['a']['b'] = 2", "C['a']['b']", "1", "2", 3),
    Case("dict.get", "C = {'a': 1}\ndef f(x):\n    return x * C.get('b', 2)",
         {"C": IS}, "C['b'] = 7", "C", "{'a': 1}", "{'a': 1, 'b': 7}", 3),
    Case("dict.items", "C = {'a': 1.5}\ndef f(x):\n    for k, v in C.items():\n        x = x * v\n"
         "    return x",
         {"C": IS}, "C['a'] = 2", "C", "{'a': 1.5}", "{'a': 2}", 3),
    Case("list element", "L = [2.0, 3.0]\ndef f(x):\n    return x * L[1]",
         {"L": I, "L[1]": V}, "L[1] = 4.0", "L[1]", "3.0", "4.0", 3),
    Case("iterated list", "L = [2.0, 3.0]\ndef f(x):\n    for k in L:\n        x = x * k\n    return x",
         {"L": IS}, "L.append(1.0)", "L", "[2.0, 3.0]", "[2.0, 3.0, 1.0]", 3),
    Case("length of a list", "L = [2.0, 3.0]\ndef f(x):\n    return x * len(L)",
         {"L": IS}, "L.append(1.0)", "L", "[2.0, 3.0]", "[2.0, 3.0, 1.0]", 3),
    Case("set", "S = {1}\ndef f(x):\n    return x if 1 in S else -x",
         {"S": IS}, "S.clear()", "S", "{1}", "set()", 3),
    Case("list of lists", "L = [[1], [2]]\ndef f(x):\n    for row in L:\n        for v in row:\n"
         "            x = x * v\n    return x",
         {"L": IS, "L[0]": S, "L[1]": S}, "L[1].append(3)", "L[1]", "[2]", "[2, 3]", 3),
    Case("computed index", "L = [2, 3]\ndef f(x):\n    k = 3\n    return x * L[k - 2]",
         {"L": IS}, "L[1] = 9", "L", "[2, 3]", "[2, 9]", 4),
    Case("comprehension", "L = [2.0]\ndef f(x):\n    return sum([x * k for k in L])",
         {"L": IS}, "L[0] = 9.0", "L", "[2.0]", "[9.0]", 3),
    Case("comprehension of objects", SPACE + "L = [Space(k=2.0)]\ndef f(x):\n"
         "    return sum([x * o.k for o in L])",
         {"L": IS, "L[0].k": V}, "L[0].k = 9.0", "L[0].k", "2.0", "9.0", 4),
    Case("lambdas in a list", "k = 2.0\nL = [lambda x: x * k, lambda x: x + 1]\ndef f(x):\n"
         "    for g in L:\n        x = g(x)\n    return x",
         {"L": IS, "k": V}, "k = 3.0", "k", "2.0", "3.0", 2),
    Case("lambda swapped", "L = [lambda x: x * 2]\ndef f(x):\n    for g in L:\n        x = g(x)\n"
         "    return x", {"L": IS}, "L[0] = lambda x: x", "L", "[case.<lambda>]", "[case.<lambda>]", 3),
    Case("tensor", "import tracegrad as tg\nw = tg.ones(3)\ndef f(x):\n    return x * w",
         {"w": T}, "w = tg.ones(3)", "w", "Tensor object", "Tensor object", 4),
    Case("tensor in a dict", "import tracegrad as tg\nP = {'w': tg.ones(3)}\ndef f(x):\n"
         "    return x * P['w']", {"P": I, "P['w']": T}, "P['w'] = tg.ones(3)", "P['w']",
         "Tensor object", "Tensor object", 4),
    Case("namespace", SPACE + "c = Space(lr=0.1)\ndef f(x):\n    return x * c.lr",
         {"c": I, "c.lr": V}, "c.lr = 0.2", "c.lr", "0.1", "0.2", 4),
    Case("deep namespace", SPACE + "c = Space(opt=Space(lr=0.1))\ndef f(x):\n    return x * c.opt.lr",
         {"c": I, "c.opt": I, "c.opt.lr": V}, "c.opt.lr = 0.2", "c.opt.lr", "0.1", "0.2", 4),
    Case("alias in a local", SPACE + "c = Space(opt=Space(lr=0.1))\ndef f(x):\n    o = c.opt\n"
         "    return x * o.lr",
         {"c": I, "c.opt": I, "c.opt.lr": V}, "c.opt.lr = 0.2", "c.opt.lr", "0.1", "0.2", 5),
    Case("conditional alias", SPACE + "a, b = Space(k=1), Space(k=2)\ndef f(x):\n"
         "    return x * (a if x.ndim else b).k",
         {"a": I, "b": I, "a.k": V, "b.k": V}, "a.k = 3", "a.k", "1", "3", 4),
    Case("object replaced", SPACE + "c = Space(lr=0.1)\ndef f(x):\n    return x * c.lr",
         {"c": I, "c.lr": V}, "c = Space(lr=0.1)", "c", "object", "object", 4),
    Case("dataclass", "from dataclasses import dataclass\n@dataclass\nclass C:\n    lr: float = 0.1\n"
         "c = C()\ndef f(x):\n    return x * c.lr",
         {"c": I, "c.lr": V}, "c.lr = 0.2", "c.lr", "0.1", "0.2", 7),
    Case("slots", "class C:\n    __slots__ = ('lr',)\nc = C()\nc.lr = 0.1\ndef f(x):\n"
         "    return x * c.lr", {"c": I, "c.lr": V}, "c.lr = 0.2", "c.lr", "0.1", "0.2", 6),
    Case("class attribute", "class C:\n    lr = 0.1\nc = C()\ndef f(x):\n    return x * c.lr",
         {"c": I, "c.lr": V}, "C.lr = 0.2", "c.lr", "0.1", "0.2", 5),
    Case("attribute of a class", "class C:\n    lr = 0.1\ndef f(x):\n    return x * C.lr",
         {"C": I, "C.lr": V}, "C.lr = 0.2", "C.lr", "0.1", "0.2", 4),
    Case("getattr by name", SPACE + "c = Space(lr=0.1)\ndef f(x):\n    return x * getattr(c, 'lr')",
         {"c": I, "c.lr": V}, "c.lr = 0.2", "c.lr", "0.1", "0.2", 4),
    Case("getattr by computed name", SPACE + "c = Space(lr=0.1)\ndef f(x):\n    n = 'l' + 'R'.lower()\n"
         "    return x * getattr(c, n)",
         {"c": IS, "c.lr": V}, "c.lr = 0.2", "c.lr", "0.1", "0.2", 5),
    Case("vars()", SPACE + "c = Space(lr=0.1)\ndef f(x):\n    return x * vars(c)['lr']",
         {"c": IS, "c.lr": V}, "c.lr = 0.2", "c.lr", "0.1", "0.2", 4),
    Case("hasattr", SPACE + "c = Space()\ndef f(x):\n    return x if hasattr(c, 'k') else -x",
         {"c": I, "c.k": V}, "c.k = 1", "c.k", "absent", "1", 4),
    Case("passed to a helper", SPACE + "c = Space(lr=0.1)\ndef g(x, cfg):\n    return x * cfg.lr\n"
         "def f(x):\n    return g(x, c)",
         {"g": I, "c": I, "cfg.lr": V}, "c.lr = 0.2", "cfg.lr", "0.1", "0.2", 4),
    Case("returned by a helper", SPACE + "c = Space(lr=0.1)\ndef g():\n    return c\n"
         "def f(x):\n    return x * g().lr",
         {"g": I, "c": IS, "c.lr": V}, "c.lr = 0.2",
         "c.lr", "0.1", "0.2", 4),
    Case("method", "class C:\n    def __init__(self):\n        self.k = 2\n    def g(self, x):\n"
         "        return x * self.k\nc = C()\ndef f(x):\n    return c.g(x)",
         {"c": I, "c.g": I, "C.g": I, "self.k": V}, "c.k = 3", "self.k", "2", "3", 5),
    Case("method patched", "class C:\n    def g(self, x):\n        return x * 2\nc = C()\n"
         "def f(x):\n    return c.g(x)",
         {"c": I, "c.g": I, "C.g": I}, "C.g = lambda self, x: x", "c.g", "method", "method", 6,
         also=("C.g",)),
    Case("method shadowed by an attribute", "class C:\n    def g(self, x):\n        return x * 2\n"
         "c = C()\ndef f(x):\n    return c.g(x)",
         {"c": I, "c.g": I, "C.g": I}, "c.g = lambda x: x", "c.g", "method", "<lambda>", 6),
    Case("property", "class C:\n    k = 2\n    @property\n    def p(self):\n        return self.k\n"
         "c = C()\ndef f(x):\n    return x * c.p",
         {"c": I, "c.p": I, "self.k": V}, "C.k = 3", "self.k", "2", "3", 5),
    Case("callable object", "class C:\n    k = 2\n    def __call__(self, x):\n        return x * self.k\n"
         "f = C()", {"C.__call__": I, "self.k": V}, "f.k = 3", "self.k", "2", "3", 4),
    Case("bound method", "class C:\n    k = 2\n    def g(self, x):\n        return x * self.k\n"
         "c = C()\nf = c.g", {"C.g": I, "self.k": V}, "c.k = 3", "self.k", "2", "3", 4),
    Case("operator method", "class C:\n    k = 2\n    def __rmul__(self, x):\n        return x * self.k\n"
         "c = C()\ndef f(x):\n    return 3 * c * x",
         {"c": I, "C.__rmul__": I, "self.k": V}, "c.k = 3", "self.k", "2", "3", 4),
    Case("static method", "class C:\n    @staticmethod\n    def g(x):\n        return x * 2\n"
         "def f(x):\n    return C.g(x)",
         {"C": I, "C.g": I}, "C.g = staticmethod(lambda x: x)", "C.g", "static", "static", 6),
    Case("class method", "class C:\n    k = 2\n    @classmethod\n    def g(cls, x):\n"
         "        return x * cls.k\ndef f(x):\n    return C.g(x)",
         {"C": I, "C.g": I, "cls.k": V}, "C.k = 3", "cls.k", "2", "3", 5),
    Case("super", "class B:\n    k = 2\n    def g(self, x):\n        return x * self.k\nclass C(B):\n"
         "    def g(self, x):\n        return super().g(x) + 1\nc = C()\ndef f(x):\n    return c.g(x)",
         {"c": I, "c.g": I, "C.g": I, "B.g": I, "self.k": V}, "B.k = 3", "self.k",
         "2", "3", 4),
    Case("decorated", "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def w(*a, **k):\n"
         "        return g(*a, **k)\n    return w\nk = 2\n@deco\ndef f(x):\n    return x * k",
         {"g": I, "k": V}, "k = 3", "k", "2", "3", 10),
    Case("partial", "from functools import partial\nfrom types import SimpleNamespace as Space\n"
         "c = Space(k=2)\ndef g(cfg, x):\n    return x * cfg.k\nf = partial(g, c)",
         {"g": I, "cfg.k": V}, "c.k = 3", "cfg.k", "2", "3", 5),
    Case("partial in a global", "from functools import partial\ndef g(x, k):\n    return x * k\n"
         "p = partial(g, k=2)\ndef f(x):\n    return p(x)",
         {"p": I, "p.keywords": S}, "p.keywords['k'] = 3", "p.keywords", "{'k': 2}", "{'k': 3}", 6),
    Case("recursion", "k = 2\ndef f(x, n=3):\n    return x if n == 0 else k * f(x, n - 1)",
         {"k": V, "f": I}, "k = 3", "k", "2", "3", 3),
    Case("generator", "k = 2\ndef g():\n    for i in range(3):\n        yield i * k\ndef f(x):\n"
         "    return x * sum(g())", {"g": I, "k": V}, "k = 3", "k", "2", "3", 4),
    Case("user module", "import types, sys\nm = types.ModuleType('case_settings')\nm.lr = 0.1\n"
         "def f(x):\n    return x * m.lr", {"m": I, "m.lr": V}, "m.lr = 0.2", "m.lr", "0.1", "0.2", 5),
    Case("import inside", "import types, sys\nm = sys.modules['case_inner'] = types.ModuleType('case_inner')\n"
         "m.lr = 0.1\ndef f(x):\n    from case_inner import lr\n    return x * lr",
         {"case_inner.lr": V}, "m.lr = 0.2", "case_inner.lr", "0.1", "0.2", 5),
    Case("module with an epoch", MODEL + "m = Model(w=tg.ones(3), k=2)\ndef f(x):\n"
         "    return x * m.w * m.k", {"m": IE}, "m.k = 3", "m", "unchanged", "changed 1 times", 10),
    Case("part of a module", MODEL + "m = Model(part=Model(w=tg.ones(3)))\ndef f(x):\n"
         "    return x * m.part.w", {"m": IE}, "m.part.w = tg.ones(3)", "m", "unchanged",
         "changed 1 times", 10),
    Case("object held by a module", MODEL + "from types import SimpleNamespace as Space\n"
         "m = Model(cfg=Space(lr=0.1))\ndef f(x):\n    return x * m.cfg.lr",
         {"m": IE, "m.cfg.lr": V}, "m.cfg.lr = 0.2", "m.cfg.lr", "0.1", "0.2", 11),
    Case("list held by a module", MODEL + "m = Model(sizes=[2, 3])\ndef f(x):\n"
         "    return x * m.sizes[0]",
         {"m": IE, "m.sizes[0]": V}, "m.sizes[0] = 5", "m.sizes[0]", "2", "5", 10),
    Case("class attribute of a module", MODEL + "Model.k = 2\nm = Model()\ndef f(x):\n    return x * m.k",
         {"m": IE, "m.k": V}, "Model.k = 3", "m.k", "2", "3", 11),
    Case("argument that is an object", SPACE + "c = Space(k=2)\ndef f(x, cfg):\n    return x * cfg.k",
         {"cfg.k": V}, "c.k = 3", "cfg.k", "2", "3", 4, call="f(x, c)"),
    Case("walrus, star, try", "L = [1, 2]\ndef g(a, b):\n    return a * b\ndef f(x):\n    try:\n"
         "        return x * g(*L)\n    finally:\n        (y := 3)",
         {"L": IS, "g": I}, "L[1] = 5", "L", "[1, 2]", "[1, 5]", 6),
    Case("unpacking", "P = [2, 3]\ndef f(x):\n    a, b = P\n    return x * a + b",
         {"P": IS}, "P[0] = 9", "P", "[2, 3]", "[9, 3]", 3),
    Case("enumerate", SPACE + "L = [Space(k=2)]\ndef f(x):\n    for i, o in enumerate(L):\n"
         "        x = x * o.k\n    return x", {"L": IS, "L[0].k": V}, "L[0].k = 5", "L[0].k", "2", "5", 5),
    Case("list given to tracegrad", "import tracegrad as tg\nS = [3, 1]\ndef f(x):\n    return x.reshape(S)",
         {"S": IS}, "S[:] = [1, 3]", "S", "[3, 1]", "[1, 3]", 4),
    Case("object in a new container", SPACE + "c = Space(k=2)\ndef f(x):\n    for o in (c,):\n"
         "        x = x * o.k\n    return x", {"c": I, "c.k": V}, "c.k = 4", "c.k", "2", "4", 5),
    Case("captured by an inner function", SPACE + "c = Space(k=2)\ndef f(x):\n    o = c\n"
         "    def g(y):\n        return y * o.k\n    return g(x)",
         {"c": I, "o.k": V}, "c.k = 4", "o.k", "2", "4", 6),
]  # fmt: skip

# Programs that read in roundabout ways, and a change of the result that no guard names so exactly.
_C = SPACE + "c = Space(k=2, o=Space(k=3))\nd = Space(k=5, o=Space(k=7))\nL = [c, d]\n" \
    "D = {'a': c, 'b': d}\nn = 0\n"  # fmt: skip
ROUNDABOUT = {
    "index counted up": (_C + "def f(x):\n    i = 0\n    while i < 2:\n        x = x * L[i].k\n"
                         "        i += 1\n    return x", "d.k = 6"),
    "index of an inner function": (_C + "def f(x):\n    i = 0\n    def up():\n        nonlocal i\n"
                                   "        i += 1\n    up()\n    return x * L[i].k", "d.k = 6"),
    "range index": (_C + "def f(x):\n    for i in range(2):\n        x = x * L[i].o.k\n    return x",
                    "d.o.k = 8"),
    "negative index": (_C + "def f(x):\n    return x * L[-1].k", "L[-1] = c"),
    "slice": (_C + "def f(x):\n    for o in L[1:]:\n        x = x * o.k\n    return x", "d.k = 6"),
    "slice of a slice": (_C + "def f(x):\n    return x * L[:][::-1][0].k", "d.k = 6"),
    "reversed": (_C + "def f(x):\n    return x * next(reversed(L)).k", "d.k = 6"),
    "max by key": (_C + "def f(x):\n    return x * max(L, key=lambda o: o.k).o.k", "d.o.k = 8"),
    "sorted": (_C + "def f(x):\n    return x * sorted(L, key=lambda o: -o.k)[0].o.k", "d.o.k = 8"),
    "map": (_C + "def f(x):\n    return x * sum(map(lambda o: o.k, L))", "d.k = 6"),
    "filter": (_C + "def f(x):\n    return x * next(filter(lambda o: o.k > 2, L)).o.k", "d.o.k = 8"),
    "zip": (_C + "def f(x):\n    for a, b in zip(L, L[::-1]):\n        x = x * a.k\n    return x", "d.k = 6"),
    "attrgetter": (_C + "import operator\ndef f(x):\n    return x * operator.attrgetter('o.k')(c)",
                   "c.o.k = 9"),
    "itemgetter": (_C + "import operator\ndef f(x):\n    return x * operator.itemgetter(1)(L).k",
                   "d.k = 6"),
    "reduce": (_C + "import functools\ndef f(x):\n    return functools.reduce(lambda y, o: y * o.k, L, x)",
               "d.k = 6"),
    "dict values": (_C + "def f(x):\n    return x * list(D.values())[1].k", "d.k = 6"),
    "dict items": (_C + "def f(x):\n    for k, v in D.items():\n        x = x * v.o.k\n"
                   "    return x", "d.o.k = 8"),
    "dict copy": (_C + "def f(x):\n    return x * dict(D)['b'].k", "d.k = 6"),
    "dict get": (_C + "def f(x):\n    return x * D.get('b', c).k", "d.k = 6"),
    "dict spread": (_C + "def f(x):\n    return x * {**D}['b'].k", "d.k = 6"),
    "keyword spread": (_C + "def g(a, b):\n    return b.k\ndef f(x):\n    return x * g(**D)", "d.k = 6"),
    "argument spread": (_C + "def g(a, b):\n    return b.k\ndef f(x):\n    return x * g(*L)", "d.k = 6"),
    "unknown callee": (_C + "def pick(o):\n    return [g, g][0]\ndef g(o):\n    return o.k\ndef f(x):\n"
                       "    return x * pick(1)(c)", "c.k = 9"),
    "list spread": (_C + "def f(x):\n    return x * [*L, 1][1].k", "d.k = 6"),
    "list sum": (_C + "M = [c]\ndef f(x):\n    return x * (M + L)[2].k", "d.k = 6"),
    "set": (_C + "S = {1, 2}\ndef f(x):\n    return x * sum(S | {7})", "S.add(3)"),
    "membership": (_C + "def f(x):\n    return x if 'z' in D else -x", "D['z'] = 1"),
    "equality": (_C + "A, B = [1, [2]], [1, [2]]\ndef f(x):\n    return x if A == B else -x", "B[1][0] = 3"),
    "or": (_C + "o = None\ndef f(x):\n    return x * (o or c).k", "c.k = 9"),
    "linked nodes": (_C + "c.next, d.next = d, None\ndef f(x):\n    n = c\n    while n is not None:\n"
                     "        x = x * n.k\n        n = n.next\n    return x", "d.k = 6"),
    "long list of nodes": (SPACE + "n = None\nfor i in range(12):\n    n = Space(k=i + 1, next=n)\n"
                           "last = n\nwhile last.next: last = last.next\ndef f(x):\n    m = n\n"
                           "    while m is not None:\n        x = x * m.k\n        m = m.next\n    return x",
                           "last.k = 9"),
    "stored in an object": (_C + "class W:\n    def __init__(self, o):\n        self.o = o\ndef f(x):\n"
                            "    return x * W(c).o.k", "c.k = 9"),
    "stored in a list": (_C + "def f(x):\n    M = []\n    M.append(c)\n    return x * M[0].k", "c.k = 9"),
    "stored in a dict": (_C + "def f(x):\n    M = {}\n    M['a'] = c\n    return x * M['a'].k", "c.k = 9"),
    "named tuple": (_C + "from collections import namedtuple\nP = namedtuple('P', 'o')\ndef f(x):\n"
                    "    return x * P(c).o.k", "c.k = 9"),
    "tuple of objects": (_C + "T = (c, d)\ndef f(x):\n    for o in T:\n        x = x * o.k\n    return x",
                         "d.k = 6"),
    "yielded": (_C + "def g():\n    yield from L\ndef f(x):\n    for o in g():\n        x = x * o.k\n"
                "    return x", "d.k = 6"),
    "generator expression": (_C + "def f(x):\n    return x * sum(o.k for o in L)", "d.k = 6"),
    "nested comprehension": (_C + "M = [L]\ndef f(x):\n    return x * sum([o.k for N in M for o in N])",
                             "d.k = 6"),
    "returned tuple": (_C + "def g():\n    return 1, c\ndef f(x):\n    a, b = g()\n    return x * b.k",
                       "c.k = 9"),
    "inner function": (_C + "def f(x):\n    def g():\n        def h(): return c.k\n        return h()\n"
                       "    return x * g()", "c.k = 9"),
    "default of an inner function": (_C + "def f(x):\n    def g(o=c): return o.k\n"
                                     "    return x * g()", "c.k = 9"),
    "assigned by an inner function": (_C + "def f(x):\n    o = None\n    def g():\n        nonlocal o\n"
                                      "        o = c\n    g()\n    return x * o.k", "c.k = 9"),
    "copy": (_C + "import copy\ndef f(x):\n    return x * copy.copy(c).k", "c.k = 9"),
    "deep copy": (_C + "import copy\ndef f(x):\n    return x * copy.deepcopy(c).o.k", "c.o.k = 9"),
    "asdict": ("from dataclasses import dataclass, asdict\n@dataclass\nclass A:\n    k: int = 2\n"
               "c = A()\ndef f(x):\n    return x * asdict(c)['k']", "c.k = 9"),
    "replace": ("from dataclasses import dataclass, replace\n@dataclass\nclass A:\n    k: int = 2\n"
                "    j: int = 1\n"
                "c = A()\ndef f(x):\n    return x * replace(c, j=2).k", "c.k = 9"),
    "__getattr__": ("class A:\n    def __init__(self):\n        self.data = {'k': 2}\n"
                    "    def __getattr__(self, n):\n        return self.data[n]\nc = A()\ndef f(x):\n"
                    "    return x * c.k", "c.data['k'] = 9"),
    "__getitem__": ("class A:\n    def __init__(self):\n        self.data = {'k': 2}\n"
                    "    def __getitem__(self, n):\n        return self.data[n]\nc = A()\ndef f(x):\n"
                    "    return x * c['k']", "c.data['k'] = 9"),
    "__iter__": (_C + "class A:\n    def __iter__(self):\n        return iter(L)\na = A()\ndef f(x):\n"
                 "    for o in a:\n        x = x * o.k\n    return x", "d.k = 6"),
    "dict subclass": ("class A(dict):\n    pass\nc = A(k=2)\ndef f(x):\n    return x * c['k']", "c['k'] = 9"),
    "dict with attributes": ("class A(dict):\n    def __getattr__(self, n):\n        return self[n]\n"
                             "c = A(k=2)\ndef f(x):\n    return x * c.k", "c['k'] = 9"),
    "descriptor": ("class P:\n    def __init__(self, v): self.v = v\n"
                   "    def __get__(self, o, t): return self.v\n"
                   "class A:\n    k = P(2)\nc = A()\ndef f(x):\n    return x * c.k", "A.__dict__['k'].v = 9"),
    "inherited slots": ("class A:\n    __slots__ = ('k',)\nclass B(A):\n    __slots__ = ('j',)\n"
                        "c = B()\nc.k = 2\n"
                        "def f(x):\n    return x * c.k", "c.k = 9"),
    "type(self)": ("class A:\n    k = 2\n    def g(self): return type(self).k\nc = A()\ndef f(x):\n"
                   "    return x * c.g()", "A.k = 9"),
    "subclass gains an attribute": ("class B:\n    k = 2\nclass A(B):\n    pass\nc = A()\ndef f(x):\n"
                                    "    return x * c.k", "A.k = 9"),
    "match": (_C + "def f(x):\n    match c:\n        case Space(k=2):\n            return x\n    return -x",
              "c.k = 9"),
    "with": ("class A:\n    k = 2\n    def __enter__(self): return self\n    def __exit__(self, *e): pass\n"
             "c = A()\ndef f(x):\n    with c as o:\n        return x * o.k", "A.k = 9"),
    "exception": (_C + "def f(x):\n    try:\n        raise KeyError(c)\n    except KeyError as e:\n"
                  "        return x * e.args[0].k", "c.k = 9"),
    "f-string": (_C + "t = 'a'\ndef f(x):\n    return x * len(f'{t}b')", "t = 'aa'"),
    "globals": (_C + "def f(x):\n    return x * globals()['n']", "n = 1"),
    "eval": (_C + "def f(x):\n    return x * eval('n')", "n = 1"),
    "environment": ("import os\nos.environ['TRACEGRAD_CASE'] = '1'\ndef f(x):\n"
                    "    return x * int(os.environ['TRACEGRAD_CASE'])", "os.environ['TRACEGRAD_CASE'] = '2'"),
    "argv": ("import sys\ndef f(x):\n    return x * len(sys.argv)", "sys.argv.append('a')"),
    "context variable": ("import contextvars\nv = contextvars.ContextVar('v', default=1)\ndef f(x):\n"
                         "    return x * v.get()", "v.set(2)"),
    "thread local": ("import threading\nt = threading.local()\nt.k = 2\ndef f(x):\n"
                     "    return x * t.k", "t.k = 3"),
    "weak reference": ("import weakref\nclass A:\n    k = 2\nc = A()\nr = weakref.ref(c)\ndef f(x):\n"
                       "    return x * r().k", "A.k = 3"),
    "lru_cache": ("import functools\nk = 2\n@functools.lru_cache\ndef g():\n    return k\ndef f(x):\n"
                  "    return x * g()", "g.cache_clear(); k = 3"),
    "singledispatch": ("import functools\nk = 2\n@functools.singledispatch\ndef g(o):\n    return o * k\n"
                       "def f(x):\n    return g(x)", "k = 3"),
    "default dict": ("from collections import defaultdict\nD = defaultdict(int)\ndef f(x):\n"
                     "    return x * D['a']",
                     "D['a'] = 2"),
    "ordered dict": ("from collections import OrderedDict\nD = OrderedDict(a=1)\ndef f(x):\n"
                     "    return x * next(iter(D.values()))", "D['b'] = D.pop('a') + 1"),
    "deque": ("from collections import deque\nq = deque([1])\ndef f(x):\n    return x * q[0]", "q[0] = 3"),
    "array": ("import array\na = array.array('d', [1.0])\ndef f(x):\n    return x * a[0]", "a[0] = 3"),
    "bytearray": ("a = bytearray(b'a')\ndef f(x):\n    return x * a[0]", "a[0] = 3"),
    "numpy array": ("import numpy as np\na = np.ones(3, 'float32')\ndef f(x):\n    return x * tg.tensor(a)\n"
                    "import tracegrad as tg", "a[0] = 3"),
    "numpy array in a default": ("import numpy as np\nimport tracegrad as tg\n"
                                 "def f(x, a=np.ones(3, 'float32')):\n"
                                 "    return x * tg.tensor(a)", "f.__defaults__[0][0] = 3"),
    "generator object": ("g = (i for i in range(9))\ndef f(x):\n    return x * next(g)", "next(g)"),
    "counter": ("import itertools\ni = itertools.count()\ndef f(x):\n    return x * next(i)", "next(i)"),
    "function attribute": ("def g(x):\n    return x * g.k\ng.k = 2\ndef f(x):\n    return g(x)", "g.k = 3"),
    "class body": ("k = 2\ndef f(x):\n    class A:\n        j = k\n    return x * A.j", "k = 3"),
    "metaclass": ("class M(type):\n    @property\n    def k(cls): return cls.j\nclass A(metaclass=M):\n"
                  "    j = 2\n"
                  "def f(x):\n    return x * A.k", "A.j = 3"),
    "mapping proxy": ("import types\nD = {'a': 1}\np = types.MappingProxyType(D)\ndef f(x):\n"
                      "    return x * p['a']",
                      "D['a'] = 2"),
    "user dict": ("from collections import UserDict\nD = UserDict(a=1)\ndef f(x):\n"
                  "    return x * D['a']", "D['a'] = 2"),
    "chain map": ("from collections import ChainMap\nE = {'a': 1}\nD = ChainMap({}, E)\ndef f(x):\n"
                  "    return x * D['a']", "E['a'] = 2"),
    "held by a module, iterated": (MODEL + "from types import SimpleNamespace as Space\n"
                                   "m = Model(L=[Space(k=2)])\ndef f(x):\n    for o in m.L:\n"
                                   "        x = x * o.k\n"
                                   "    return x", "m.L[0].k = 3"),
    "module of nn": ("import tracegrad as tg\nfrom types import SimpleNamespace as Space\n"
                     "class N(tg.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
                     "        self.cfg = Space(k=2)\n    def forward(self, x):\n        return x * self.cfg.k\n"
                     "m = tg.nn.Sequential(N())\ndef f(x):\n    return m(x)", "m[0].cfg.k = 3"),
    "forward replaced": ("import tracegrad as tg\nclass N(tg.nn.Module):\n    def forward(self, x):\n"
                         "        return x * 2\nm = N()\ndef f(x):\n    return m(x)",
                         "N.forward = lambda self, x: x"),
    "training mode": ("import tracegrad as tg\nm = tg.nn.Dropout()\ndef f(x):\n    return m(x)", "m.eval()"),
    "hook": ("import tracegrad as tg\nm = tg.nn.ReLU()\ndef f(x):\n    return m(x)",
             "m.register_forward_hook(lambda m, i, o: o * 2)"),
    "global fallback of a cell": ("def make():\n    L = [1]\n    def f(x):\n        return x * L[0]\n"
                                  "    return f, L\n"
                                  "f, L = make()", "L[0] = 3"),
    "star import": ("from math import *\ndef f(x):\n    return x * pi", "pi = 3"),
}  # fmt: skip
