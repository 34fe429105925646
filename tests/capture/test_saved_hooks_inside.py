"""`saved_tensors_hooks` inside compiled functions: pure hooks are replayed, others run as they are."""

from __future__ import annotations

from typing import Any

import pytest
from user_node_cases import LOG, Cube, agree, backwards, note, run, second

import tracegrad as tg
from tracegrad.autograd.graph import save_on_cpu, saved_tensors_hooks

OFFSET = 1.0


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


def body(w: Any, x: Any) -> Any:
    return (x * w).sin().exp() * w


def same(w: Any, x: Any) -> Any:
    with saved_tensors_hooks(lambda t: t, lambda t: t):
        return body(w, x)


def half(w: Any, x: Any) -> Any:
    with saved_tensors_hooks(lambda t: t.to(tg.float16), lambda t: t.to(tg.float32)):
        return body(w, x)


def on_cpu(w: Any, x: Any) -> Any:
    with save_on_cpu():
        return body(w, x)


def wrong_on_purpose(w: Any, x: Any) -> Any:
    """So that it is seen that they are used, and with which values."""
    with saved_tensors_hooks(lambda t: (t * 2, [t.sum(), 3.0]), lambda p: p[0] + p[1][0] * p[1][1]):
        return body(w, x)


def noted_in_the_backward(w: Any, x: Any) -> Any:
    def unpack(kept: Any) -> Any:
        note("unpack", kept)
        return kept

    with saved_tensors_hooks(lambda t: t.clone(), unpack):
        return body(w, x)


def nested(w: Any, x: Any) -> Any:
    with saved_tensors_hooks(lambda t: t * 3, lambda t: t):
        y = x * w
        with saved_tensors_hooks(lambda t: t * 5, lambda t: t):
            y = y.exp()
        y = y * w
    return y * y


def with_a_variable(w: Any, x: Any) -> Any:
    scale = x.sum()
    with saved_tensors_hooks(lambda t: t / 2, lambda t: t * scale + OFFSET):
        return body(w, x)


def beside_a_hook(w: Any, x: Any) -> Any:
    with saved_tensors_hooks(lambda t: t * 2, lambda t: t):
        y = (x * w).exp()
        y.register_hook(lambda g: (note("hook", g), g * 3)[1])
        z = y * w
    return Cube.apply(z)


PROGRAMS = (
    same, half, on_cpu, wrong_on_purpose, noted_in_the_backward, nested, with_a_variable, beside_a_hook,
)  # fmt: skip


@pytest.mark.parametrize("after", [backwards, second], ids=["twice", "second derivative"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_replayed_as_eagerly(program: Any, after: Any) -> None:
    compiled = tg.compile(program, wait=True, strict=True)
    agree(run(compiled, 5, after), run(program, 5, after))
    assert compiled.cache_info().hits >= 1


def test_a_hook_that_notes_what_it_packs_runs_as_it_is() -> None:
    def program(w: Any, x: Any) -> Any:
        with saved_tensors_hooks(lambda t: (note("pack", t), t)[1], lambda t: t):
            return body(w, x)

    compiled = tg.compile(program, wait=True)
    with pytest.warns(tg.EagerWarning, match="side effect"):
        found = run(compiled, 4, backwards)
    agree(found, run(program, 4, backwards))


def test_what_it_packs_must_be_something_a_replay_can_make() -> None:
    def program(w: Any, x: Any) -> Any:
        with saved_tensors_hooks(lambda t: t.detach().numpy().copy(), tg.tensor):
            return body(w, x)

    compiled = tg.compile(program, wait=True)
    with pytest.warns(tg.EagerWarning, match="numpy|ndarray"):
        found = run(compiled, 4, backwards)
    agree(found, run(program, 4, backwards))


def test_what_a_function_saves_through_hooks_runs_as_it_is() -> None:
    def program(w: Any, x: Any) -> Any:
        with saved_tensors_hooks(lambda t: t * 2, lambda t: t):
            return Cube.apply(w * x)

    compiled = tg.compile(program, wait=True)
    with pytest.warns(tg.EagerWarning, match="Cube keeps what hooks on saved tensors made"):
        found = run(compiled, 4, backwards)
    agree(found, run(program, 4, backwards))
