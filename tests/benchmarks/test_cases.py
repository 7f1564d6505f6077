"""Cases, the gate and the suites, on CPU tensors with the peers that a CPU has."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.throughput import ROOT, model, passes, steps
from benchmarks.throughput.__main__ import main
from benchmarks.throughput.cases import CASES, PAIRS, Built, Case
from benchmarks.throughput.gate import FAILED, HALF, PASSED, UNAVAILABLE, Gate, Verdict
from benchmarks.throughput.record import Record
from benchmarks.throughput.run import plan_jobs, run_gate, run_jobs, show_failures
from benchmarks.throughput.session import Job, Session
from tests.benchmarks.records import ENVIRONMENT
from tests.benchmarks.test_inputs import CPU
from tools.inputs import Inputs, Shape
from tools.timing import Clock, Plan, wall_timer

SQUARE = Shape(2, 4, 2, 48, 48, 16)
STEP = Shape(2, 4, 2, 1, 70, 16)
BY_NAME = {case.name: case for case in CASES}
HERE = [case for case in CASES if "cpu" in case.devices and not case.name.startswith("flex")]
FLEX = [case for case in CASES if case.name.startswith("flex")]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    record = Record(tmp_path / "a.json", dict(ENVIRONMENT), {})
    plan = Plan(budget_ms=1.0, least=2, most=2)
    console = Console(file=io.StringIO(), width=200)
    return Session(CPU, record, Clock(1e9), wall_timer, wall_timer, plan, console)


def pass_all(session: Session, shape: Shape, names: tuple[str, ...] = tuple(BY_NAME)) -> None:
    for name in names:
        session.record.add_verdict(Verdict(name, "bfloat16", str(shape), shape.dim, not shape.square, PASSED).as_json())


def test_cases_have_unique_names() -> None:
    assert len(BY_NAME) == len(CASES)
    assert {name for pair in PAIRS for name in pair} <= set(BY_NAME)


@pytest.mark.parametrize("dtype", HALF)
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


def test_passes_record_times_and_reasons(session: Session) -> None:
    cases = [*HERE, replace(BY_NAME["sdpa cudnn"], devices=("cpu",), build=broken)]
    pass_all(session, SQUARE, tuple(case.name for case in cases if case.name != "sdpa flash"))
    wrong = Verdict("sdpa flash", "bfloat16", str(SQUARE), 16, False, FAILED, reason="off by 7")
    session.record.add_verdict(wrong.as_json())
    session.cases = cases
    passes.measure(session, SQUARE, ("forward", "backward"))
    forward, backward = (session.record.data["cells"][f"{suite} {SQUARE}"] for suite in ("forward", "backward"))
    assert forward["cases"]["folded bias"]["p50_ms"] > 0
    assert forward["cases"]["folded bias"]["tflops"] > 0
    assert forward["cases"]["sdpa flash"] == {"failed": f"bfloat16, {SQUARE}: off by 7"}
    assert "No available kernel" in forward["cases"]["sdpa cudnn"]["unavailable"]
    assert backward["cases"]["sdpa materialised bias"] == {"skipped": "forward only"}
    assert backward["cases"]["folded bias"]["p50_ms"] > 0
    assert show_failures(session.console, session.record.data, session.record.failures)


def test_passes_skip_unchecked_cases(session: Session) -> None:
    session.cases = [BY_NAME["folded bias"]]
    passes.measure(session, SQUARE, ("forward",))
    assert session.record.data["cells"][f"forward {SQUARE}"]["cases"] == {
        "folded bias": {"unavailable": "was not checked"}
    }


def test_session_skips_slow_and_large_cases(session: Session) -> None:
    case = BY_NAME["flex bias"]
    session.note_slow("backward", case, replace(SQUARE, keys=4096), 1500.0)
    long = session.too_slow("backward", case, replace(SQUARE, keys=16_384))
    assert long == {"skipped": "one call would take about 6 s (it took 1.5 s at 4096 keys)"}
    assert session.too_slow("backward", case, replace(SQUARE, keys=8192)) is None
    large = BY_NAME["sdpa materialised bias"]
    assert large.skipped(Shape(8, 32, 8, 4096, 4096, 128)) is None
    assert "16 GiB" in (large.skipped(Shape(4, 32, 8, 8192, 8192, 128)) or "")


def test_steps_time_one_cache_of_many(session: Session) -> None:
    pass_all(session, STEP)
    session.record.data["ceilings"] = {"copy_gb_per_s": 10.0}
    session.cases = [BY_NAME["sdpa default"], BY_NAME["sdpa flash"]]
    steps.measure(session, STEP, caches=3)
    cell = session.record.data["cells"][f"decode eager {STEP}"]
    assert cell["caches"] == 3
    for case in cell["cases"].values():
        assert case["of_copy"] == pytest.approx(case["gb_per_s"] / 10)


def test_model_trains_and_generates(session: Session) -> None:
    size = model.Size(
        hidden=32, layers=2, heads=4, groups=2, intermediate=64, vocabulary=64, batch=2, length=24, prompt=16,
        generated=3, train_rounds=2, generate_rounds=2,
    )  # fmt: skip
    pass_all(session, Shape(1, 1, 1, 2, 2, size.dim), tuple(c for needs in model.NEEDS.values() for c in needs))
    model.measure_training(session, size)
    model.measure_generation(session, size)
    train, generated = (session.record.data["cells"][name] for name in ("train", "generate"))
    assert set(train["ratios"]) == set(generated["ratios"]) == {"bias / unpatched", "channel / unpatched"}
    assert train["shape"]["difference_at_rest"] < 0.01
    assert train["shape"]["parameters"] > 0
    assert all(case["tokens_per_s"] > 0 for case in generated["cases"].values())
    assert not session.record.failures


def test_run_jobs_resumes_and_obeys_budget(session: Session) -> None:
    ran: list[str] = []

    def job(name: str) -> Job:
        return Job((name,), 0, lambda s: (ran.append(name), s.record.add_cell(name, {"suite": "x", "cases": {}}))[0])

    session.record.add_cell("one", {"suite": "x", "cases": {}})
    run_jobs(session, [job("one"), job("two")])
    assert ran == ["two"]
    assert session.record.data["finished"]
    session.record.data["finished"] = False
    session.clock = Clock(0.0)
    run_jobs(session, [job("two"), job("three"), job("four")])
    assert ran == ["two"]
    assert session.record.data["left_out"] == ["three", "four"]
    assert not session.record.data["finished"]


def test_run_gate_keeps_passed_verdicts(session: Session) -> None:
    gate = Gate(STEP, "bfloat16", CPU, gradients=False)
    run_gate(session, [gate])
    before = list(session.record.data["gate"])
    assert {v["case"] for v in before} == {"sdpa flash", "sdpa default", "flex bias"}
    run_gate(session, [gate])
    assert session.record.data["gate"] == before


def test_plan_jobs_most_urgent_first() -> None:
    jobs = plan_jobs(("forward", "backward", "decode", "model"), quick=False)
    keys = [key for job in jobs for key in job.keys]
    assert len(keys) == len(set(keys)) == 2 * 12 + 2 * 24 + 2 + 2
    assert jobs[0].keys[0] == "forward B8 H32 G8 T4096 S4096 D128"
    assert keys.index("train") < 12
    quick = plan_jobs(("forward", "backward", "decode"), quick=True)
    assert not any("D64" in key for job in quick for key in job.keys)


def test_main_without_gpu_names_alternative(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert "expected an NVIDIA GPU" in said
    assert "got no CUDA device" in said
    assert "python benchmarks/attention_cpu.py" in said


def test_gate_fused_kernel_passes_interpreted() -> None:
    pytest.importorskip("triton")
    code = (
        "import torch\nfrom benchmarks.throughput.cases import CASES\n"
        "from benchmarks.throughput.gate import Gate, Shape\n"
        "gate = Gate(Shape(1, 2, 1, 1, 35, 16), 'float16', torch.device('cpu'), gradients=False)\n"
        "for case in CASES:\n    if case.own:\n        print(gate.check(case))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )  # fmt: skip
    verdicts = done.stdout.strip().splitlines()
    assert len(verdicts) == sum(case.own for case in CASES), done.stderr[-2000:]
    assert all("status='passed'" in verdict for verdict in verdicts), verdicts
