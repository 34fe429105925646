"""The launcher of a trace: generated Python from guards to results.

`LauncherBuilder` decides the lines; `codegen.launchers` lays them out; `build` compiles the text
and binds its names. Start reading at `LauncherBuilder.build`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracegrad.codegen.launchers import GuardLine, Launcher, caught, launcher_text, run_lines
from tracegrad.ir.errors import BoundsError, DivisionByZeroError
from tracegrad.ir.graph import Value
from tracegrad.runtime import history
from tracegrad.runtime.cuda.placing import resident
from tracegrad.runtime.executable import Strayed
from tracegrad.runtime.kernels import pointer
from tracegrad.runtime.layouts import inverse
from tracegrad.tracer import verification
from tracegrad.tracer.apart import Apart
from tracegrad.tracer.capture import Source
from tracegrad.tracer.capture_grads import unhooked
from tracegrad.tracer.capture_memory import announce, apart, note, write_all, write_back
from tracegrad.tracer.capture_state import number_tensor
from tracegrad.tracer.compiled_backward import CompiledBackward, FreedBackward, gradient_source
from tracegrad.tracer.known_layout import KnownLayout, moves
from tracegrad.tracer.resident import plain_memory
from tracegrad.tracer.split_tape import SplitTape
from tracegrad.tracer.tensor import wrap

if TYPE_CHECKING:
    from tracegrad.tracer.joint import Joint
    from tracegrad.tracer.trace import Trace

GRADIENT = -4
"""The position that a launcher reports where a `.grad` is there, or not, unlike at the capture."""

OVERLAP = -3
"""The position that a launcher reports where a tensor that it writes to overlaps another input."""

MISS = object()
"""What a launcher returns when one of its guards fails."""

FAULT = object()
"""What a launcher returns when its code found values with which eager mode raises an error."""


class LauncherBuilder:
    """Writes the launcher of one compiled trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.capture = trace.capture
        self.names = _input_names(trace.capture.sources)
        self.watched: set[int] = set()  # captured inputs whose layout a guard of the trace checks
        self.layouts = self._layouts()
        self.inlined = trace.place is None and not trace.debug and trace.verify != "always"
        self.joint = trace.mode.active
        self.executable = trace.executable if self.joint is None else self.joint.executable
        self.places = trace.places if self.joint is None else self.joint.places
        self.replaced: dict[int, int] = {}  # arrays that the unit writes where an input lies
        if self.inlined and self.joint is None and trace.executable is not None:
            self.replaced = dict(trace.executable.unit.inplace)

    def build(self) -> tuple[str, Callable[[Sequence[Any]], Any]]:
        """The text of the launcher, and the function."""
        trace, names = self.trace, self.names
        namespace: dict[str, Any] = {
            "MISS": MISS, "FAULT": FAULT, "faults": (BoundsError, DivisionByZeroError),
            "Strayed": Strayed, "trace": trace, "wrap": wrap, "pointer": pointer, "missed": trace.missed,
            "contiguous": plain_memory, "CompiledBackward": CompiledBackward,
            "source": gradient_source, "mode": trace.mode, "joint": trace.mode.active,
            "announce": announce, "note": note, "write_back": write_back, "write_all": write_all,
            "FreedBackward": FreedBackward, "unhooked": unhooked,
            "number": number_tensor,
        }  # fmt: skip
        if trace.segmented is not None:
            namespace["attach"] = SplitTape(trace).attach
        namespace.update((f"make_{k}", v.make) for k, (_, _, v) in enumerate(self.capture.views))
        guards = self._guard_views(namespace)
        inputs: list[str] = []
        draws: list[str] = []
        undo: list[str] = []
        addresses: list[str] = []
        for k, (source, name) in enumerate(zip(self.capture.sources, names, strict=True)):
            if source.kind == "argument":
                inputs.append(f"{name} = leaves[{source.position}]")
            elif source.kind == "grad":
                inputs.append(f"{name} = {names[source.position]}._grad")
            elif source.number is not None:
                namespace.update(source.number.bindings)
                inputs.append(f"{name} = number({source.number.text})")
            elif source.kind == "random":
                namespace[f"generator_{k}"] = source.generator
                draws.append(
                    f"{name} = generator_{k}.next_state({'' if trace.place is None else trace.place})"
                )
                undo.append(f"generator_{k}.hand_back()")
            else:
                namespace[name] = source.tensor
            if trace.place is not None and source.value.type.device == "cpu":
                namespace["resident"] = resident
                draws.append(f"copy_{k} = resident({name}._array, {trace.place})")
                addresses.append(f"copy_{k}.address")
            elif k in self.trace.copied:
                draws.append(f"copy_{k} = contiguous({name}._array)")
                addresses.append(f"pointer(copy_{k})")
            elif k in self.layouts:
                addresses.append(f"layout_{k}.address")
            else:
                addresses.append(f"{name}._ptr()")
        inputs += self._apart_lines(namespace)
        inputs += draws  # last: a launch that misses draws nothing
        call, keep = self._call(namespace, addresses, undo)
        after = [
            *self._result_lines(), *self._callback_lines(namespace), *self._write_lines(namespace),
            *self._gradient_lines(),
        ]  # fmt: skip
        for k, call_after in enumerate(self.capture.afterwards):
            namespace[f"after_{k}"] = call_after
            after.append(f"after_{k}()")
        launcher = Launcher(
            f"Replay of {trace.name}, captured because {trace.why}.", tuple(guards), tuple(inputs),
            tuple(call), tuple(after), self._returned(), tuple(undo), tuple(keep),
        )  # fmt: skip
        text = launcher_text(launcher)
        exec(compile(text, f"<tracegrad launcher of {trace.name}>", "exec"), namespace)
        if self.inlined and self.executable is not None and self.executable.launchable is not None:
            history.watch(namespace["launch"], self.executable.launchable)
        return text, namespace["launch"]

    def _call(
        self, namespace: dict[str, Any], addresses: Sequence[str], undo: Sequence[str]
    ) -> tuple[list[str], list[str]]:
        """The lines that call the forward, and those that write addresses which stay."""
        trace = self.trace
        executable = self.executable
        if executable is None:
            return ["# nothing is computed"], []
        if self.inlined:
            namespace.update(executable.names)
            kept = [k for k in self.layouts if addresses[k] == f"layout_{k}.address"]
            given = [None if k in kept else a for k, a in enumerate(addresses)]
            line, keep = "", []
            if kept:
                namespace["moves"] = moves
                line = "if slot[2] is not moves[0]: keep(slot)  # a tensor from outside has moved"
                keep = ["slot[2], args = moves[0], slot[0]"]
                keep += [f"args[{k}] = {addresses[k]}" for k in kept]
            failed = caught(["fail(slot, slots)"], undo)
            announced = [f"announce({self.names[k]})" for k in self.replaced.values()]
            lines = run_lines(given, executable.types, failed, line, "array")
            return [*announced, *lines], keep
        namespace["forward"] = executable.call
        made = ", ".join(f"array_{k}" for k in range(trace.returned))
        target = f"{made}, = " if made else ""
        attempt = [f"{target}forward({', '.join(addresses)})"]
        if trace.verify == "always":
            namespace["verified"] = lambda *parts: verification.verified(trace, *parts)
            arrays = _tuple([f"{name}._array" for name in self.names])
            if made:
                attempt.append(f"{made}, = verified({arrays}, ({made},))")
        return caught(attempt, undo), []

    def _apart_lines(self, namespace: dict[str, Any]) -> list[str]:
        """Look whether what the launch writes to shares memory with another input."""
        written = {w.source for w in self.capture.writes}
        if not written:
            return []
        seen = [k for k, s in enumerate(self.capture.sources)
                if s.kind not in ("random", "number", "literal")]  # fmt: skip
        names, kinds = self.names, (written, set(seen) - written)
        if self.trace.place is not None:
            namespace["apart"] = apart
            given = [_tuple([names[k] for k in seen if k in kind]) for kind in kinds]
        else:  # of tensors from outside it is known while none has moved
            fixed = [[self.capture.sources[k].tensor for k in seen if k in kind and k in self.layouts]
                     for kind in kinds]  # fmt: skip
            namespace["apart"] = Apart(*fixed)  # type: ignore[arg-type]
            given = [_tuple([names[k] for k in seen if k in kind and k not in self.layouts])
                     for kind in kinds]  # fmt: skip
        return [
            f"if not apart({', '.join(given)}):",
            f"    return missed({OVERLAP})  # a write would be seen by another input",
        ]

    def _layouts(self) -> dict[int, KnownLayout]:
        """The layouts of the captured inputs."""
        watched = {
            id(known.tensor): known for guard in self.trace.guards
            for known in guard.bindings.values() if isinstance(known, KnownLayout)
        }  # fmt: skip
        found = {}
        for k, source in enumerate(self.capture.sources):
            if source.kind == "captured" and source.tensor is not None:
                known = watched.get(id(source.tensor))
                if known is not None:
                    self.watched.add(k)
                found[k] = known or KnownLayout(source.tensor)
        return found

    def _guard_views(self, namespace: dict[str, Any]) -> list[GuardLine]:
        views = []
        for i, guard in enumerate(self.trace.guards):
            namespace.update(guard.bindings)
            where = f", read at {guard.location}" if guard.location else ""
            views.append(GuardLine(guard.text, f"{guard.name}{where}", i))
        for k, known in self.layouts.items():
            namespace[f"layout_{k}"] = known
            if k in self.watched:
                continue
            source = self.capture.sources[k]
            namespace[f"captured_{k}"] = source.tensor
            name = source.value.name or f"captured_{k}"
            text = known.guard(f"captured_{k}", f"layout_{k}")
            comment = f"{name}: {source.value.type}"
            views.append(GuardLine(text, comment, len(self.trace.guards) + k))
        for k, condition in enumerate(self.capture.conditions):
            views.append(
                GuardLine(condition.text, str(condition), self.trace.place_of_condition(k))
            )
        views += self._gradient_views(namespace)
        for position, tensor in self.trace.same:
            namespace[f"same_{position}"] = tensor
            text = f"leaves[{position}] is same_{position}"
            views.append(GuardLine(text, "the argument was also read from outside", -1))
        return views

    def _gradient_views(self, namespace: dict[str, Any]) -> list[GuardLine]:
        """Gradients that the run read are there or not as they were, and nobody waits for others."""
        views = []
        gradients = {g.source: g for g in self.capture.gradients}
        for k in self.capture.unhooked:
            source = self.capture.sources[k]
            leaf = f"leaves[{source.position}]"
            if source.kind != "argument":
                leaf = f"leaf_{k}"
                namespace[leaf] = source.tensor
            text = f"unhooked({leaf})"
            g = gradients.get(k)
            if g is not None and g.read and g.initial is None:
                text += f" and {leaf}._grad is None"
            elif g is not None and g.read and g.initial is not None:
                array = g.initial._array
                namespace[f"grad_dtype_{k}"] = array.dtype
                text += (
                    f" and {leaf}._grad is not None and {leaf}._grad._array.shape == {array.shape}"
                    f" and {leaf}._grad._array.strides == {array.strides}"
                    f" and {leaf}._grad._array.dtype == grad_dtype_{k}"
                    f" and not {leaf}._grad._requires_grad"
                )
            views.append(GuardLine(text, f"{source.value.name or 'a leaf'}.grad", GRADIENT))
        return views

    def _callback_lines(self, namespace: dict[str, Any]) -> list[str]:
        """Call what the user wants to see values, before an input is written to."""
        lines = []
        for k, callback in enumerate(self.capture.callbacks):
            namespace[f"callback_{k}"] = callback
            arrays = []
            for kind, at in callback.tensors:
                if kind == "output":
                    kind, at = self.places[at]
                arrays.append(f"{self.names[at]}._array" if kind == "input" else f"array_{at}")
            lines.append(f"callback_{k}({', '.join(f'wrap({a}.copy())' for a in arrays)})")
        return lines

    def _gradient_lines(self) -> list[str]:
        """Leave the gradients that the run left."""
        lines = []
        for change in self.capture.gradient_changes:
            value = "None"
            if change.kind == "input":
                value = self.names[change.at]
            elif change.kind == "output":
                value = f"out_{change.at}"
            lines.append(f"{self.names[change.source]}._grad = {value}")
        return lines

    def _write_lines(self, namespace: dict[str, Any]) -> list[str]:
        """Write to the inputs; what comes from another input is read before the first write."""
        read, written, noted = [], [], []
        for w in self.capture.writes:
            kind, at = (w.kind, w.at) if w.kind == "input" else self.places[w.at]
            namespace[f"noted_{w.source}"] = w.noted
            if kind == "array" and at in self.replaced:
                noted.append(f"note({self.names[w.source]}, noted_{w.source})")
                continue
            array = f"array_{at}"
            if kind == "input":
                array = f"moved_{w.source}"
                read.append(f"{array} = {self.names[at]}._array.copy()")
            written.append((self.names[w.source], array, f"noted_{w.source}"))
        if len(written) > 1 and self.trace.place is not None:
            listed = _tuple([_tuple(parts) for parts in written])
            return [*read, f"write_all({listed})"]
        return [*read, *(f"write_back({', '.join(parts)})" for parts in written), *noted]

    def _result_lines(self) -> list[str]:
        """Wrap the arrays that the caller sees, and put the backward on the tape."""
        names = self.names
        lines = []
        owners = self._owners()
        for k, (kind, at) in self._shown():
            source = f"array_{at}" if kind == "array" else f"{names[at]}._array"
            if kind != "array" or owners[at] != k:  # the same value once more: memory of its own
                source += ".copy()"
            if k in self.capture.orders:
                source += f".transpose({inverse(self.capture.orders[k])})"
            lines.append(f"out_{k} = wrap({source})")
        outputs = self.trace.cotangent_outputs()
        if self.trace.wrt and outputs:
            sources = _tuple([f"source({names[i]})" for i in self.trace.wrt])
            inputs = _tuple([self._kept(k) for k in range(len(names))])
            kept = self._residual_values(watched=self.joint is not None)
            residuals = _tuple([self._residual(v) for v in kept])
            made = f"{sources}, {residuals}, {inputs}, {self._saved()}"
            if self.joint is not None:
                made += f", joint, {self._gradients(self.joint)}"
            lines.append(f"node = CompiledBackward(trace, {made})")
            for number, k in enumerate(outputs):
                lines.append(f"out_{k}._requires_grad = True")
                lines.append(f"out_{k}._grad_fn = node")
                if number:
                    lines.append(f"out_{k}._output_nr = {number}")
        if self.trace.segmented is not None:
            made = _tuple([f"array_{k}" for k in range(self.trace.returned)])
            results = _tuple(
                [f"out_{k}" if kind == "output" else "None" for kind, k in self.capture.returns]
            )
            lines.append(f"attach({_tuple(names)}, {made}, {results})  # the tape")
        for k, (kind, at, _) in enumerate(self.capture.views):
            lines.append(f"view_{k} = make_{k}({f'out_{at}' if kind == 'output' else names[at]})")
        for k in self.capture.freed:
            lines.append(f"out_{k}._requires_grad = True")
            lines.append(f"out_{k}._grad_fn = FreedBackward((), (out_{k}.type_info,))")
        if self.joint is None:
            lines.append("trace.hits += 1")
        else:
            lines += [
                "trace.hits = hits = trace.hits + 1",
                "if hits > mode.limit:",
                "    mode.leave()  # the gradients are not asked for",
            ]
        return lines

    def _gradients(self, joint: Joint) -> str:
        """Python text of the gradients: for each input with one, an array of its own, or None."""
        given: set[int] = set()
        texts = {}
        for i, (kind, at) in zip(joint.wrt, joint.gradients, strict=True):
            if kind == "input":
                texts[i] = f"{self.names[at]}._array.copy()"
                continue
            shown = at in given or at in self._owners()
            texts[i] = f"array_{at}.copy()" if shown else f"array_{at}"
            given.add(at)
        return _tuple([texts.get(i, "None") for i in self.trace.wrt])

    def _shown(self) -> list[tuple[int, tuple[str, int]]]:
        """The outputs that the caller gets, with their places; others are only written back."""
        returned = {k for kind, k in self.capture.returns if kind == "output"}
        returned |= {c.at for c in self.capture.gradient_changes if c.kind == "output"}
        returned |= {k for kind, k, _ in self.capture.views if kind == "output"}
        return [(k, place) for k, place in enumerate(self.places) if k in returned]

    def _kept(self, k: int) -> str:
        """Python text of input k for the backward: a copy where the launch writes to it."""
        name = self.names[k]
        if any(w.source == k for w in self.capture.writes):
            return f"({name}._array.copy(), None, 0)"
        return f"({name}._array, {name}._storage, {name}._storage.version)"

    def _owners(self) -> dict[int, int]:
        """For each array of the forward that the caller sees, the first output that wraps it."""
        owners: dict[int, int] = {}
        for k, (kind, at) in self._shown():
            if kind == "array":
                owners.setdefault(at, k)
        return owners

    def _residual_values(self, watched: bool = False) -> tuple[Value, ...]:
        """What the backward starts from; only what somebody could write to, if `watched`."""
        if self.trace.cut is None:
            return ()
        shown = (*self.trace.cut.forward.inputs, *self.trace.graph.outputs)
        return tuple(v for v in self.trace.cut.residuals if not watched or v in shown)

    def _saved(self) -> str:
        """Python text of what eager mode has saved and somebody could write to."""
        residuals = [self._residual(v) for v in self._residual_values(watched=True)]
        returned = {k for k, _ in self._shown()}
        texts, numbers = [], []
        for kind, k, by in self.trace.saved:
            text = self._kept(k) if kind == "input" else f"(out_{k}._array, out_{k}._storage, 0)"
            if text not in residuals and (kind == "input" or k in returned):
                texts.append(text)
                numbers.append(by)
        self.trace.saved_by = tuple(numbers)
        return _tuple(texts)

    def _residual(self, value: Value) -> str:
        """Python text of one residual: (array, storage or None, version).

        The storage is that of the tensor whose memory it is, so that a write to it is noticed.
        """
        cut, names = self.trace.cut, self.names
        assert cut is not None
        if value in cut.forward.inputs:
            k = cut.forward.inputs.index(value)
            if any(w.source == k for w in self.capture.writes):
                return self._kept(k)
            array = f"copy_{k}" if k in self.trace.copied else f"{names[k]}._array"
            return f"({array}, {names[k]}._storage, {names[k]}._storage.version)"
        kind, at = self.places[cut.forward.outputs.index(value)]
        if kind == "input" and any(w.source == at for w in self.capture.writes):
            return f"(contiguous({names[at]}._array.copy()), None, 0)"
        if kind == "input":  # simplification found it to be one
            array = f"{names[at]}._array"
            if not self.capture.sources[at].contiguous:
                array = f"contiguous({array})"
            return f"({array}, {names[at]}._storage, {names[at]}._storage.version)"
        owner = self._owners().get(at)
        return f"(array_{at}, {'None' if owner is None else f'out_{owner}._storage'}, 0)"

    def _returned(self) -> str:
        parts = []
        for kind, k in self.capture.returns:
            if kind == "output":
                parts.append(f"out_{k}")
            elif kind == "view":
                parts.append(f"view_{k}")
            elif self.capture.sources[k].kind in ("argument", "captured"):
                parts.append(self.names[k])
            else:
                parts.append(f"wrap({self.names[k]}._array.copy())")  # each call makes a new one
        return _tuple(parts)


def _input_names(sources: Sequence[Source]) -> list[str]:
    """A distinct Python name for each input; no other name of a launcher begins with `in_`."""
    names: list[str] = []
    for k, s in enumerate(sources):
        name = f"in_{s.value.name}"
        names.append(name if s.value.name.isidentifier() and name not in names else f"in_{k}")
    return names


def _tuple(parts: Sequence[str]) -> str:
    """The text of a tuple."""
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
