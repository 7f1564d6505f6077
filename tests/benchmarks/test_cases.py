"""Cases, the gate and the suites, on CPU tensors with the peers that a CPU has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from benchmarks.throughput import model, passes, steps
from benchmarks.throughput.cases import CASES, EXPANDED, PAIRS, Built, Case, sdpa
from benchmarks.throughput.gate import FAILED, PASSED, UNAVAILABLE, Gate, Verdict, of_check
from benchmarks.throughput.session import Session, slow_cases
from tests.benchmarks.test_inputs import CPU
from tools.calls import CHANNEL, DECODE, FEATURES, call
from tools.inputs import Inputs, Shape, make_inputs
from tools.timing import Clock, Plan, wall_timer

SQUARE = Shape(2, 4, 2, 48, 48, 16)
STEP = Shape(2, 4, 2, 1, 70, 16)
BY_NAME = {case.name: case for case in CASES}
HERE = [case for case in CASES if "cpu" in case.devices and not case.name.startswith("flex")]
FLEX = [case for case in CASES if case.name.startswith("flex")]


@pytest.fixture
def session() -> Session:
    return Session(CPU, Clock(1e9), wall_timer, wall_timer, plan=Plan(budget_ms=1.0, least=2, most=2))


def passed(shape: Shape, names: tuple[str, ...] = tuple(BY_NAME)) -> list[dict[str, object]]:
    return [Verdict(name, "bfloat16", str(shape), shape.dim, not shape.square, PASSED).as_json() for name in names]


def test_cases_have_unique_names() -> None:
    assert len(BY_NAME) == len(CASES)
    assert {name for pair in PAIRS for name in pair} <= set(BY_NAME)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gate_cpu_peers_pass(dtype: str) -> None:
    gate = Gate(SQUARE, dtype, CPU, gradients=True)
    for case in HERE:
        verdict = gate.check(case)
        assert verdict.status == PASSED, verdict
        assert ("dq max" in verdict.errors) == ("cpu" in case.gradients)
        assert ("dbias max" in verdict.errors) == (case.name == "folded bias")


@pytest.mark.parametrize("queries", [1, 4])
def test_gate_cpu_peers_decode(queries: int) -> None:
    gate = Gate(replace(STEP, queries=queries), "bfloat16", CPU, gradients=False)
    for case in HERE:
        verdict = gate.check(case)
        assert verdict.status == PASSED, verdict


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shape", [SQUARE, replace(STEP, queries=4)])
def test_gate_flex_attention_passes(shape: Shape) -> None:
    gate = Gate(shape, "bfloat16", CPU, gradients=False)
    for case in FLEX:
        verdict = gate.check(case)
        assert verdict.status == PASSED, verdict


def wrong(how: Callable[[torch.Tensor], torch.Tensor]) -> Case:
    right = BY_NAME["sdpa default"]
    return replace(right, name="wrong", build=lambda x: Built(lambda: how(right.build(x).call())))


@pytest.mark.parametrize("how", [lambda o: o * 1.05, lambda o: o.roll(1, 2), lambda o: o * float("nan")])
def test_gate_wrong_results_fail(how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    verdict = Gate(SQUARE, "bfloat16", CPU, gradients=True).check(wrong(how))
    assert verdict.status == FAILED
    assert "out" in verdict.reason


def test_gate_wrong_gradients_fail() -> None:
    verdict = Gate(SQUARE, "bfloat16", CPU, gradients=True).check(wrong(lambda o: o.detach() + (o - o.detach()) * 1.2))
    assert verdict.status == FAILED
    assert "out " not in verdict.reason
    assert "dq max" in verdict.reason


def broken(x: Inputs) -> Built:
    raise RuntimeError("No available kernel. Aborting execution.")


def test_gate_error_of_peer_is_unavailable() -> None:
    gate = Gate(SQUARE, "bfloat16", CPU, gradients=True)
    peer = gate.check(replace(BY_NAME["sdpa cudnn"], build=broken))
    assert (peer.status, peer.reason) == (UNAVAILABLE, "RuntimeError: No available kernel. Aborting execution.")
    assert gate.check(replace(BY_NAME["bias"], build=broken)).status == FAILED


def refusing(backend: object) -> object:
    """Return `scaled_dot_product_attention` as a backend that does not share key heads."""
    right = torch.nn.functional.scaled_dot_product_attention

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: object, **options: object) -> torch.Tensor:
        if q.shape[1] != k.shape[1]:
            raise RuntimeError("No available kernel. Aborting execution.")
        calls.append((k.shape[1], options["enable_gqa"]))
        return right(q, k, v, *others, **options)  # type: ignore[arg-type]

    calls: list[tuple[int, object]] = []
    attend.calls = calls  # type: ignore[attr-defined]
    return attend


def test_peer_without_shared_heads_repeats_them_before(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = refusing(None)
    monkeypatch.setattr("benchmarks.throughput.cases.F.scaled_dot_product_attention", attend)
    case = replace(BY_NAME["sdpa flash"], build=sdpa(torch.nn.attention.SDPBackend.MATH))
    verdict = Gate(SQUARE, "bfloat16", CPU, gradients=True).check(case)
    assert verdict.status == PASSED, verdict
    assert {"dk max", "dv rms"} <= set(verdict.errors)
    built = case.build(make_inputs(SQUARE, torch.bfloat16, CPU, gradients=True))
    assert built.note == EXPANDED
    repeats: list[object] = []
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda *_, **__: repeats.append(1))
    out = built.call()
    assert not repeats, "key heads are repeated in the timing"
    leaves = built.leaves_of(make_inputs(SQUARE, torch.bfloat16, CPU), case.features)
    assert leaves["k"].shape == leaves["v"].shape == (2, 4, 48, 16)
    found = torch.autograd.grad(out.sum(), [leaves["k"], leaves["v"]])
    assert [x.shape for x in found] == [leaves["k"].shape] * 2, "the sum over the heads is not in the timing"


def test_passes_record_times_and_reasons(session: Session) -> None:
    cases = [*HERE, replace(BY_NAME["sdpa cudnn"], devices=("cpu",), build=broken)]
    session.gate = passed(SQUARE, tuple(case.name for case in cases if case.name != "sdpa flash"))
    session.gate += [Verdict("sdpa flash", "bfloat16", str(SQUARE), 16, False, FAILED, reason="off by 7").as_json()]
    session.cases = cases
    forward, backward = (passes.measure(session, suite, SQUARE) for suite in ("forward", "backward"))
    assert forward["cases"]["folded bias"]["p50_ms"] > 0
    assert forward["cases"]["folded bias"]["tflops"] > 0
    assert forward["cases"]["sdpa flash"] == {"failed": f"bfloat16, {SQUARE}: off by 7"}
    assert "No available kernel" in forward["cases"]["sdpa cudnn"]["unavailable"]
    assert backward["cases"]["sdpa materialised bias"] == {"skipped": "forward only"}
    assert backward["cases"]["folded bias"]["p50_ms"] > 0


def test_passes_out_of_memory_leaves_other_cases(session: Session) -> None:
    def full(x: Inputs) -> Built:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    def later(x: Inputs) -> Built:
        right, calls = BY_NAME["folded bias"].build(x), []

        def call() -> torch.Tensor:
            calls.append(1)
            if len(calls) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return right.call()

        return Built(call)

    bias = {"devices": ("cpu",), "own": True}
    full_case = replace(BY_NAME["bias"], build=full, **bias)
    later_case = replace(BY_NAME["off"], build=later, features=BY_NAME["bias"].features, **bias)
    session.gate, session.cases = passed(SQUARE), [full_case, later_case, BY_NAME["folded bias"]]
    cell = passes.measure(session, "forward", SQUARE)
    assert cell["cases"]["bias"] == {"failed": "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."}
    assert cell["cases"]["off"] == {"failed": "OutOfMemoryError: CUDA out of memory."}
    assert cell["cases"]["folded bias"]["p50_ms"] > 0


def test_passes_skip_unchecked_cases(session: Session) -> None:
    session.cases = [BY_NAME["folded bias"]]
    cell = passes.measure(session, "forward", SQUARE)
    assert cell["cases"] == {"folded bias": {"unavailable": "was not checked"}}


def test_session_spent_cell_prepares_no_more(session: Session) -> None:
    seconds = iter([0.0, 5.0, 7.0, 7.0, 7.0])
    session.clock = Clock(10.0, now=lambda: next(seconds))
    session.gate = passed(SQUARE)
    ready, absent = session.prepare([BY_NAME["folded bias"], BY_NAME["sdpa flash"]], SQUARE, lambda case: case.name)
    assert ready == {"folded bias": "folded bias"}
    assert absent == {"sdpa flash": {"skipped": "7 of the 10 s of this cell were spent"}}


def test_slow_call_is_timed_once(session: Session) -> None:
    seconds = iter([0.0, *[6.0] * 9])
    session.clock = Clock(10.0, now=lambda: next(seconds))
    times = {"slow": 2000.0, "fast": 1.0}
    session.timer = lambda calls: [call() for call in calls]
    calls = {name: lambda ms=ms: ms for name, ms in times.items()}
    cell = session.time_cell("forward", SQUARE, calls, {}, lambda name, ms: {}, [("slow", "fast")])
    assert {name: case["rounds"] for name, case in cell["cases"].items()} == {"slow": 1, "fast": 2}
    assert cell["ratios"]["slow / fast"]["median"] == 2000.0


def test_session_skips_slow_and_large_cases(session: Session) -> None:
    case = BY_NAME["flex bias"]
    cases = {"flex bias": {"p50_ms": 1500.0}, "bias": {"p50_ms": 30.0}, "off": {"failed": "x"}}
    session.slow = slow_cases({"one": {"suite": "backward", "shape": {"keys": 4096, "dim": 16}, "cases": cases}})
    assert session.slow == {("backward", "flex bias", 16): (4096, 1500.0)}
    long = session.too_slow("backward", case, replace(SQUARE, keys=16_384))
    assert long == {"skipped": "one call would take about 6 s (it took 1.5 s at 4096 keys)"}
    assert session.too_slow("backward", case, replace(SQUARE, keys=8192)) is None
    large = BY_NAME["sdpa materialised bias"]
    assert large.skipped(Shape(8, 32, 8, 4096, 4096, 128)) is None
    assert "16 GiB" in (large.skipped(Shape(4, 32, 8, 8192, 8192, 128)) or "")


def test_steps_time_one_cache_of_many(session: Session) -> None:
    session.gate, session.ceilings = passed(STEP), {"copy_gb_per_s": 10.0}
    session.cases = [BY_NAME["sdpa default"], BY_NAME["sdpa flash"]]
    cell = steps.measure(session, "eager", STEP, caches=3)
    assert cell["caches"] == 3
    for case in cell["cases"].values():
        assert case["of_copy"] == pytest.approx(case["gb_per_s"] / 10)


def test_model_trains_and_generates(session: Session) -> None:
    size = model.Size(
        hidden=32, layers=2, heads=4, groups=2, intermediate=64, vocabulary=64, batch=2, length=24, prompt=16,
        generated=3, train_rounds=2, generate_rounds=2,
    )  # fmt: skip
    needs = tuple(case for cases in model.NEEDS.values() for case in cases)
    session.gate = passed(Shape(1, 1, 1, 2, 2, size.dim), needs)
    assert model.refusals(session, size, (False, True))["bias"] == {"unavailable": "bias: was not checked"}
    train = model.measure_training(session, size)
    session.gate += passed(Shape(1, 1, 1, 1, 2, size.dim), needs)
    generated = model.measure_generation(session, size)
    assert set(train["ratios"]) == set(generated["ratios"]) == {"bias / unpatched", "channel / unpatched"}
    assert train["shape"]["difference_at_rest"] < 0.01
    assert train["shape"]["parameters"] > 0
    assert all(case["tokens_per_s"] > 0 for case in generated["cases"].values())


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"dim": 128, **CHANNEL}, {("channel", 128, False)}),
        ({"dim": 64, "dtype": "float16", **FEATURES["bias"]}, {("bias", 64, False), ("bias, new layout", 64, False)}),
        ({"dim": 128, "keys": 700, **DECODE}, {("off", 128, True)}),
        ({"dtype": "float32", **CHANNEL}, set()),
        (FEATURES["everything"], set()),
        (FEATURES["window, channel"], set()),
    ],
)
def test_failed_check_refuses_cases_of_its_features(options: dict[str, object], refused: set[object]) -> None:
    found = list(of_check({"name": "a", "detail": "wrong out"}, call(**options)))  # type: ignore[arg-type]
    assert {(v.case, v.dim, v.decode) for v in found} == refused
    assert all((v.status, v.reason) == (FAILED, "check 'a': wrong out") for v in found)
    assert not list(of_check({"name": "a", "detail": "wrong out"}, None))


def test_gate_fused_kernel_passes() -> None:
    """Interpreted, or on the GPU where there is one."""
    device = torch.device("cpu" if pytest.importorskip("rolesafe_kernels.launch").INTERPRET else "cuda")
    gate = Gate(Shape(1, 2, 1, 1, 35, 16), "float16", device, gradients=False)
    verdicts = [gate.check(case) for case in CASES if case.own]
    assert {"off", "bias", "channel", "integrity"} <= {verdict.case for verdict in verdicts}
    assert all(verdict.status == PASSED for verdict in verdicts), verdicts
