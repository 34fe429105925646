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
         {"c": V, "C": I, "C.A": V}, "c = C.B", "c", "C object", "C object", 7),
    Case("dtype", "import tracegrad as tg\nd = tg.float32\ndef f(x):\n    return x.to(d)",
         {"d": V}, "d = tg.float64", "d", "DType", "DType", 4),
    Case("numpy scalar", "import numpy as np\ns = np.float32(2)\ndef f(x):\n    return x * s",
         {"s": V}, "s = np.float32(3)", "s", "float32", "float32", 4),
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
         "    return x", {"L": IS}, "L[0] = lambda x: x", "L", "[<", "[<", 3),
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
