"""The CUDA runtime on an emulated driver, in processes of their own, with pycuda or a double of it.

`test_cuda_device.py` runs here as a whole; the rest are programs whose end, or fault, is what is
looked at. See `tests/cuda_on_cpu/fake_driver/emulator.py`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "cuda_on_cpu" / "fake_driver"))
import emulator  # noqa: E402
from cuda_units import FAULTY, HEAD  # noqa: E402

missing = emulator.missing()
HAS_PYCUDA = importlib.util.find_spec("pycuda") is not None
pytestmark = pytest.mark.skipif(bool(missing), reason=missing or "all is there")


DOUBLE = HERE.parent / "cuda_on_cpu" / "fake_driver" / "double"
WITH_PYCUDA = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
WITH_DOUBLE = f"{DOUBLE}{os.pathsep}{WITH_PYCUDA}"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with an emulated device."""
    folder = tmp_path_factory.mktemp("cuda")
    emulator.build(folder)
    extra = {
        "FAKE_CUDA_MEMORY": str(256 << 20),
        "TRACEGRAD_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": WITH_PYCUDA if HAS_PYCUDA else WITH_DOUBLE,
    }
    return {**os.environ, **emulator.environment(folder), **extra}


def run(program: str, machine: dict[str, str], **extra: str) -> subprocess.CompletedProcess[str]:
    text = HEAD + textwrap.dedent(program)
    command = [sys.executable, "-W", "error", "-c", text]
    return subprocess.run(
        command, env={**machine, **extra}, capture_output=True, text=True, timeout=120
    )


def works(program: str, machine: dict[str, str], **extra: str) -> str:
    """What a program printed that ends well and says nothing else."""
    done = run(program, machine, **extra)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "extra",
    [{}, {"TRACEGRAD_NO_CUDA_MEMORY_CACHING": "1"}, {"PYTHONPATH": WITH_DOUBLE}],
    ids=["pooled", "without caching", "double of pycuda"],
)
def test_everything_that_is_asked_of_a_device(
    machine: dict[str, str], extra: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    done = subprocess.run(
        [*command, str(HERE / "test_cuda_device.py")],
        env={**machine, "FAKE_CUDA_DEVICES": "2", **extra}, capture_output=True, text=True,
        cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("file", ["test_cuda_times.py", "test_cuda_debug.py"])
def test_times_and_checks_of_a_device(machine: dict[str, str], file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    done = subprocess.run(
        [*command, str(HERE / file)],
        env=machine, capture_output=True, text=True, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_generated_units_run_through_the_whole_runtime(machine: dict[str, str]) -> None:
    chosen = "add-float32 or reduce_sum-float32 or gather-float32 or flip-int64 or exp-bfloat16"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [*command, str(HERE.parent / "cuda_on_cpu" / "test_on_device.py")],
        env=machine, capture_output=True, text=True, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


# --- ends of processes ----------------------------------------------------------------------------


def test_tensors_and_training_steps_through_the_whole_stack(machine: dict[str, str]) -> None:
    """A few of the tests of tests/device, which run there on a double that interprets graphs."""
    chosen = "training or writes or views_share or pinned or dlpack or a_replay_is_eager_mode and softmax"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    done = subprocess.run(
        [*command, str(HERE.parent / "device")], env={**machine, "TRACEGRAD_WAIT": "1"},
        capture_output=True, text=True, cwd=HERE.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]


def test_a_program_ends_well_with_memory_and_kernels_alive(machine: dict[str, str]) -> None:
    program = """
        made = build(scale_unit(100), 1, floats(100))
        x = put(np.zeros(100, np.float32))
        result = made.call(x.address)
        event, pinned = events.Event(0), Pinned(100, 0)
        cycle = [result, event]; cycle.append(cycle)
    """
    works(program, machine)


def test_an_exception_under_way_ends_the_program_as_ever(machine: dict[str, str]) -> None:
    done = run("x = put(np.zeros(5)); raise KeyError('mine')", machine)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("KeyError: 'mine'")


def test_an_error_inside_the_context_leaves_nothing_pushed(machine: dict[str, str]) -> None:
    done = run("with driver.on(0): raise KeyError('mine')", machine)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("KeyError: 'mine'")


@pytest.mark.parametrize("daemon", [False, True])
def test_threads_that_used_the_device_end_well(machine: dict[str, str], daemon: bool) -> None:
    program = f"""
        made = build(scale_unit(100), 1, floats(100))
        begun = threading.Event()
        kept = []
        def work():
            while True:
                x = put(np.zeros(100, np.float32))
                kept.append(made.call(x.address))
                begun.set()
                if not {daemon}:
                    return
        threads = [threading.Thread(target=work, daemon={daemon}) for _ in range(3)]
        for thread in threads: thread.start()
        begun.wait()
    """
    works(program, machine)


def test_the_first_use_in_a_thread_that_is_gone_at_the_end(machine: dict[str, str]) -> None:
    program = """
        kept = []
        def work():
            made = build(scale_unit(100), 1, floats(100))
            kept.extend([made, put(np.zeros(100, np.float32)), events.Event(0)])
        thread = threading.Thread(target=work); thread.start(); thread.join()
        print(get(kept[0].call(kept[1].address)[0], (100,))[0])
        memory.empty_cache()
    """
    assert works(program, machine) == "3.0"


def test_handlers_at_exit_may_use_the_device(machine: dict[str, str]) -> None:
    program = """
        import atexit
        x = put(np.arange(5.0))
        atexit.register(lambda: print(get(x, (5,), np.float64)[4]))
    """
    assert works(program, machine) == "4.0"


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"FAKE_CUDA_POP_FAILS": "1"}])
def test_a_fault_in_a_kernel_is_told_by_every_later_call(
    machine: dict[str, str], extra: dict[str, str]
) -> None:
    done = run(FAULTY, machine, **extra)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all("an illegal memory access was encountered" in line for line in lines)


def test_a_fault_in_a_function_that_is_debugged_names_its_line(machine: dict[str, str]) -> None:
    program = """
        import tracegrad as tg
        def f(x):
            return (x.sqrt() + 1).sum()
        compiled = tg.compile(f, debug=True)
        compiled(tg.ones(1000, device="cuda"))
        try:
            compiled._trace(-1).executable.call(16)
        except AcceleratorError as error:
            print(error)
    """
    said = run(program, machine).stdout
    assert said.startswith("CUDA error: an illegal memory access was encountered")
    line = 2 + (HEAD + textwrap.dedent(program)).splitlines().index("def f(x):")
    assert "\nThe host waited: it is launch 1 of " in said and f"kernel_0 (<string>:{line}" in said


def test_a_host_that_follows_a_device_address_crashes(machine: dict[str, str]) -> None:
    program = """
        import ctypes
        x = put(np.arange(4.0))
        get(x, (4,), np.float64)
        print("before", flush=True)
        print(ctypes.c_double.from_address(x.address).value)
    """
    done = run(program, machine)
    assert done.stdout.strip() == "before"
    assert done.returncode == -signal.SIGSEGV


def test_an_access_past_the_end_is_found_without_caching(machine: dict[str, str]) -> None:
    program = """
        made = build(scale_unit(4096), 1, floats(4096))
        short = memory.allocate(4096, 0)
        try:
            made.call(short.address)
            driver.synchronize(0)
        except AcceleratorError as error:
            print(str(error).splitlines()[0])
    """
    done = run(program, machine, TRACEGRAD_NO_CUDA_MEMORY_CACHING="1")
    assert "an illegal memory access" in done.stdout, done.stderr


def test_memory_runs_out_and_a_smaller_request_goes_on(machine: dict[str, str]) -> None:
    program = """
        held = []
        try:
            while True:
                held.append(memory.allocate(48 << 20, 0))
        except OutOfMemoryError as error:
            print(error)
        print(len(held), memory.memory_allocated(0) >> 20)
        del held[0]
        held.append(memory.allocate(40 << 20, 0))
        print(len(held), memory.memory_stats(0)["num_ooms"])
    """
    said = works(program, machine).splitlines()
    assert said[0].startswith("CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has a total ")
    assert "capacity of 256.00 MiB of which 16.00 MiB is free." in said[0]
    assert said[1:] == ["5 240", "5 1"]


def test_a_child_that_was_forked_is_told(machine: dict[str, str]) -> None:
    program = """
        import os, warnings
        warnings.simplefilter("ignore")
        x = put(np.zeros(5))
        child = os.fork()
        if child == 0:
            try:
                driver.synchronize(0)
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    assert "Cannot re-initialize CUDA in forked subprocess" in works(program, machine)


def test_a_child_that_is_forked_before_the_first_use_may_use_it(machine: dict[str, str]) -> None:
    program = """
        import os, warnings
        warnings.simplefilter("ignore")
        child = os.fork()
        if child == 0:
            print(get(put(np.arange(5.0)), (5,), np.float64)[4], flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    assert works(program, machine) == "4.0"


@pytest.mark.parametrize(
    "extra, text",
    [
        ({"FAKE_CUDA_NO_DEVICE": "1"}, "no CUDA device (cuInit failed: no CUDA-capable device"),
        ({"FAKE_CUDA_DEVICES": "0"}, "no CUDA device"),
        ({"LD_LIBRARY_PATH": "", "PATH": "/usr/bin:/bin"}, "no CUDA driver (libcuda.so.1: cannot"),
    ],
)
def test_why_there_is_no_cuda(machine: dict[str, str], extra: dict[str, str], text: str) -> None:
    program = """
        import tracegrad as tg
        print(driver.status(), tg.cuda.is_available())
        try:
            tg.cuda.init()
        except RuntimeError as error:
            print(error)
    """
    if "LD_LIBRARY_PATH" in extra and emulator.has_driver():
        pytest.skip("this machine has a driver")
    first, second = works(program, machine, **extra).splitlines()
    assert first.startswith(text)
    assert first.endswith(" False")
    assert ("NVIDIA driver" if "driver" in text else "No CUDA GPUs are available") in second


@pytest.mark.skipif(not HAS_PYCUDA, reason="pycuda is not installed")
def test_a_driver_that_lacks_what_pycuda_wants(machine: dict[str, str], tmp_path: Path) -> None:
    library = tmp_path / "libcuda.so.1"
    command = ["gcc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input="int cuInit(unsigned f) { return 0; }", text=True, check=True)
    said = works("print(driver.status())", machine, LD_LIBRARY_PATH=str(tmp_path))
    assert said.startswith("pycuda was built for a newer CUDA driver (")


def test_the_doctor_says_what_there_is(machine: dict[str, str]) -> None:
    said = works("from tracegrad.runtime import doctor; print(doctor._cuda())", machine)
    assert "usable: CUDA on CPU (fake) (sm_90); nvcc (" in said
    assert "; cuBLAS" in said


def test_an_error_of_the_compiler_names_the_source(machine: dict[str, str]) -> None:
    program = """
        from tracegrad.codegen.cuda.plan import Launch
        try:
            build(unit("__global__ void f(float *x) { x[0] = y; }", [Launch("f", ())]), 0)
        except CompileError as error:
            print(error)
    """
    said = works(program, machine)
    assert "'y' was not declared" in said or "‘y’ was not declared" in said
    assert "Source:  " in said
