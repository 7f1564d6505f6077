"""The run on a GPU, on a made-up machine: order, clock, files, exit statuses, resuming."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.throughput import __main__ as command
from benchmarks.throughput import run, stages
from benchmarks.throughput.cells import all_cells
from rolesafe.terminal import status_of
from tests.benchmarks.machine import HANG, FakeMachine, Killed
from tools import checks
from tools.checks import all_checks

TABLE = [cell for cell in all_cells() if cell.in_table]
FEW = [cell for cell in TABLE if cell.kind in ("forward", "model")]
FORWARD = "forward B8 H32 G8 T4096 S4096 D128"
GATE = "B2 H32 G8 T368 S368 D128"
SOME = ("D 128 channel", "bias", "channel", "D 128 plain", "same bits: decode", "fp32 bias", "T 2", "decode D 128")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of the kernels' checks; files that nobody waits for."""
    known = all_checks()
    monkeypatch.setattr(checks, "all_checks", lambda: {name: known[name] for name in SOME})
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def start(machine: FakeMachine, *options: str, commit: str = "0123abc") -> int:
    """Run the command; the cells of `FEW`, unless the options choose others."""
    chosen = options if "--only" in options else ("--only", "forward", "model", *options)
    return command.main(["--out", str(machine.out), "--commit", commit, *chosen], machine)


def start_all(machine: FakeMachine) -> int:
    """Run the command as it is run without options: all cells of the table."""
    return command.main(["--out", str(machine.out), "--commit", "0123abc"], machine)


def read(out: Path, name: str = "throughput") -> dict[str, Any]:
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))


def slow(usual: float = 5.0, **seconds: float) -> Callable[[str], float]:
    """Return the seconds of a call by the first word of its label; `usual` for all others."""
    return lambda label: seconds.get(label.split()[0], usual)


def test_run_order_is_gate_benchmark_tuning(out: Path) -> None:
    machine = FakeMachine(out)
    assert start_all(machine) == 0
    kinds = [label.split()[0] for label in machine.labels()]
    first = [kinds.index(kind) for kind in ("find_environment", "gate", "check", "compile")]
    then = [kinds.index(kind) for kind in ("measure_ceilings", "measure_cell", "tune")]
    assert [*first, *then] == sorted([*first, *then])
    assert max(i for i, kind in enumerate(kinds) if kind in ("gate", "check", "compile")) < then[0]
    assert machine.labels("measure_cell") == [f"measure_cell {cell.key}" for cell in TABLE]
    assert kinds[-1] == "tune"
    ends = [end for _, end, label in machine.calls if label.startswith(("gate", "check", "compile"))]
    assert max(ends) <= next(begin for begin, _, label in machine.calls if label == "measure_ceilings")


def test_run_compiles_what_gate_and_first_cells_need_first(out: Path) -> None:
    machine = FakeMachine(out)
    start_all(machine)
    gates, compiled = machine.labels("gate"), machine.labels("compile")
    assert gates[0] == f"gate off {GATE}"
    needed = [f"gate {case} {GATE}" for case in ("bias", "half dedicated", "sdpa cudnn")]
    assert [gates.index(one) for one in needed] == [1, 2, 3]
    assert compiled[0] == "compile flex bias backward B8 H32 G8 T4096 S4096 D128"
    assert not any("flex causal backward B32" in one for one in compiled[:4])


def test_run_results_are_on_disk_after_each_piece(out: Path) -> None:
    machine = FakeMachine(out)
    start_all(machine)

    def seen(label: str, name: str) -> dict[str, Any]:
        return json.loads(machine.seen[label][f"{name}.json"])

    at_ceilings = machine.seen["measure_ceilings"]
    assert {"checks.json", "throughput.json", "summary.json"} <= set(at_ceilings)
    assert len(seen("measure_ceilings", "checks")["checks"]) == len(SOME)
    assert len(seen("measure_ceilings", "throughput")["gate"]) == len(machine.labels("gate"))
    for place, cell in enumerate(TABLE):
        before = seen(f"measure_cell {cell.key}", "throughput")
        assert list(before["cells"]) == [one.key for one in TABLE[:place]]
        assert set(before["not_measured"]) == {one.key for one in TABLE[place:]}
        assert before["running"] == cell.key
    assert len(seen("tune", "throughput")["cells"]) == len(TABLE)
    assert seen("tune", "summary")["ended"] is False
    assert read(out, "summary")["ended"] is True


def test_run_commit_is_in_every_record(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.environment.checkout_commit", lambda: None)
    assert status_of(lambda: command.main(["--out", str(out)], FakeMachine(out))) == 2
    assert not out.exists(), "nothing is started without a commit"
    start(FakeMachine(out), commit="89abcde")
    for name in ("throughput", "checks", "summary"):
        assert read(out, name)["environment"]["commit"] == "89abcde"


def test_run_files_are_few(out: Path) -> None:
    machine = FakeMachine(out, slow(gate=1.0, check=1.0, measure_cell=1.0))
    out.mkdir()
    (out / ".throughput.json.77.part").write_text("cut sho")
    assert start(machine, "--all") == 0
    names = {path.name for path in out.rglob("*") if path.is_file()}
    assert names - {".lock"} == {"checks.json", "throughput.json", "summary.json", "tuning.jsonl", "sm_90.json"}
    assert len(names) <= run.MOST_FILES == 8
    for number in range(3):
        (out / f"more{number}").touch()
    assert "expected 8 files" in run.too_large(out)[0]
    (out / "more0").write_bytes(b"0" * 2**24)
    assert "16777216 bytes" in run.too_large(out)[0]


@pytest.mark.parametrize("seed", range(10))
def test_run_never_exceeds_its_time(out: Path, seed: int) -> None:
    draw = random.Random(seed)
    known: dict[str, float] = {}

    def seconds(label: str) -> float:
        # the same call takes the same time; some hang
        usual = draw.uniform(0, 60) if label.startswith(("gate", "check", "compile")) else draw.uniform(0, 40)
        return known.setdefault(label, HANG if draw.random() < 0.08 else usual)

    machine = FakeMachine(out, seconds, workers=draw.choice((2, 14)))
    known["find_environment"] = 5.0
    minutes = draw.choice((2.0, 5.0, 9.0))
    begin = machine.time
    status = start(machine, "--minutes", str(minutes))
    assert machine.time - begin <= 60 * minutes - run.MARGIN + 1e-6
    gates = [end - begin for _, end, label in machine.calls if label.startswith(("gate", "check", "compile"))]
    assert max(gates) <= known["find_environment"] + stages.GATE_SHARE * 60 * minutes
    data, summary = read(out), read(out, "summary")
    assert {*data["cells"], *data["not_measured"]} == {cell.key for cell in FEW}
    assert all(data["not_measured"].values())
    assert status == summary["status"]
    assert (status == run.WRONG) == bool(summary["failures"])
    assert (status == run.PASSED) == (not summary["failures"] + summary["unfinished"] and not data["not_measured"])


def test_run_full_benchmark_fits_into_nine_minutes(out: Path) -> None:
    machine = FakeMachine(out, slow(gate=8.0, check=8.0, compile=45.0, measure_cell=9.4))
    begin = machine.time
    assert start_all(machine) == 0
    assert machine.time - begin <= 540
    assert len(read(out)["cells"]) == len(TABLE)
    assert read(out, "summary")["tuned"], "tuning had time for a result"


def test_run_hanging_check_costs_its_limit(out: Path) -> None:
    machine = FakeMachine(out, lambda label: HANG if label == "check channel" else 5.0)
    assert start(machine) == 1
    held = {one["name"]: one["ok"] for one in read(out, "checks")["checks"]}
    assert held.pop("channel") is False
    assert all(held.values())
    assert len(held) == len(SOME) - 1
    assert len(read(out)["cells"]) == len(FEW)


def test_run_hanging_cell_costs_its_limit(out: Path) -> None:
    machine = FakeMachine(out, lambda label: HANG if label == f"measure_cell {FORWARD}" else 5.0)
    assert start(machine) == 1
    took = {label: end - begin for begin, end, label in machine.calls if label.startswith("measure_cell forward")}
    assert took.pop(f"measure_cell {FORWARD}") == stages.CELL_LIMIT
    assert len(took) == len([cell for cell in FEW if cell.kind == "forward"]) - 1
    data = read(out)
    assert data["not_measured"] == {FORWARD: "took more than 60 s"}
    assert data["lost"] == [FORWARD]
    assert read(out, "summary")["failures"] == [f"{FORWARD}: took more than 60 s"]


def test_run_cells_that_all_hang_have_the_same_limit(out: Path) -> None:
    machine = FakeMachine(out, slow(measure_cell=HANG))
    assert start(machine, "--only", "forward") == 1
    took = [end - begin for begin, end, label in machine.calls if label.startswith("measure_cell")]
    assert took == [stages.CELL_LIMIT] * 6


def test_run_crashed_cell_does_not_stop_others(out: Path) -> None:
    machine = FakeMachine(out)
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB."
    machine.broken = {"measure_cell train": reason}
    assert start(machine) == 1
    assert read(out)["not_measured"] == {"train": reason}
    assert len(read(out)["cells"]) == len(FEW) - 1


def test_run_failed_gate_refuses_its_case(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(out)
    machine.wrong = {f"gate bias {GATE}"}
    assert start(machine) == 1
    cells = read(out)["cells"]
    assert cells[FORWARD]["cases"]["bias"] == {"failed": f"bfloat16, {GATE}: out max 7, allowed 1"}
    assert "p50_ms" in cells[FORWARD]["cases"]["off"]
    assert "p50_ms" in cells["train"]["cases"]["bias"], "another kernel, which passed"
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {FORWARD}"))
    assert "WRONG: bias: bfloat16" in row


def test_run_failed_check_refuses_cases_of_its_features(out: Path) -> None:
    machine = FakeMachine(out)
    machine.wrong = {"check D 128 channel"}
    assert start(machine) == 1
    cells = read(out)["cells"]
    assert cells[FORWARD]["cases"]["channel"]["failed"].startswith("bfloat16, check D 128 channel")
    assert "p50_ms" in cells[FORWARD]["cases"]["bias"]
    assert read(out, "summary")["failures"] == ["check D 128 channel: out max 7, allowed 1"]
    # a call that does not reach it forgets nothing
    late = FakeMachine(out, slow(check=HANG, gate=70.0, compile=70.0), workers=2)
    assert start(late, "--minutes", "2") == 1
    assert read(out, "summary")["failures"] == ["check D 128 channel: out max 7, allowed 1"]
    # one in which it holds measures those rows again, and refuses nothing
    machine.wrong = set()
    assert start(machine) == 0
    assert not [v for v in read(out)["gate"] if v["status"] != "passed"]
    assert "p50_ms" in read(out)["cells"][FORWARD]["cases"]["channel"]


def test_run_failing_peer_is_no_failure(out: Path) -> None:
    machine = FakeMachine(out)
    machine.broken = {f"gate sdpa cudnn {GATE}": "RuntimeError: No available kernel."}
    assert start(machine) == 0
    assert "No available kernel" in read(out)["cells"][FORWARD]["cases"]["sdpa cudnn"]["unavailable"]


def test_run_peer_that_hangs_in_compilation_is_skipped(out: Path) -> None:
    label = "compile flex bias backward B8 H32 G8 T4096 S4096 D128"
    machine = FakeMachine(out, lambda one: HANG if one == label else 5.0)
    assert start(machine, "--only", "backward") == 0
    cases = read(out)["cells"]["backward B8 H32 G8 T4096 S4096 D128"]["cases"]
    assert cases["flex bias"] == {"skipped": "compiled and run once, beforehand: took too long"}
    assert "p50_ms" in cases["flex causal"]
    assert "p50_ms" in read(out)["cells"]["backward B4 H32 G8 T8192 S8192 D128"]["cases"]["flex bias"]


def test_run_cell_that_does_not_fit_has_a_reason(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(out, slow(measure_cell=30.0))
    assert start(machine, "--minutes", "2.4") == 3
    reasons = read(out)["not_measured"]
    assert reasons["train"] == "needs about 45 s, and 39 s were left"
    assert len(read(out)["cells"]) == 3, "a smaller cell still fits"
    printed = capsys.readouterr().out.splitlines()
    rows = printed[printed.index(next(line for line in printed if line.startswith("| cell"))) :]
    assert len(rows) == 2 + len(FEW), "the table is the end"
    assert rows[-1].startswith(f"| {FEW[-1].key} | - |")
    assert all(f"not measured: {reason}" in "\n".join(rows) for reason in reasons.values())


def test_two_calls_measure_everything(out: Path) -> None:
    seconds = slow(gate=12.0, check=30.0, compile=60.0, measure_cell=40.0)
    first = FakeMachine(out, seconds)
    assert start(first, "--minutes", "5") == 3
    done, tuned = list(read(out)["cells"]), read(out, "summary")["tuned"]
    assert 2 < len(done) < len(FEW)
    second = FakeMachine(out, seconds)
    assert start(second) == 0
    again = {f"measure_cell {key}" for key in done} & set(second.labels("measure_cell"))
    assert not again, "measured twice"
    assert not second.labels("check"), "all checks held in the first call"
    assert set(second.labels("gate")) < set(first.labels("gate"))
    assert len(read(out)["cells"]) == len(FEW)
    assert len(read(out, "summary")["tuned"]) > len(tuned)


@pytest.mark.parametrize("label", [f"gate off {GATE}", "check bias", f"measure_cell {FEW[5].key}", "tune"])
def test_killed_run_is_continued(out: Path, tmp_path: Path, label: str) -> None:
    with pytest.raises(Killed):
        start(FakeMachine(out, kill=label))
    kept = tmp_path / "killed"
    before = read(kept)["cells"] if (kept / "throughput.json").exists() else {}
    machine = FakeMachine(kept)
    status = start(machine)
    assert status == 0
    assert not {f"measure_cell {key}" for key in before} & set(machine.labels())
    assert len(read(kept)["cells"]) == len(FEW)
    assert read(kept)["lost"] == []
    if label.startswith("measure_cell"):
        assert machine.labels("measure_cell")[-1] == label, "the cell that it ended in comes last"


def test_results_of_other_sources_are_not_continued(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(FakeMachine(out)) == 0
    assert status_of(lambda: start(FakeMachine(out), commit="89abcde")) == 2
    assert "commit '89abcde'" in " ".join(capsys.readouterr().err.split())


def test_run_without_answer_of_gpu_ends(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(out, lambda label: HANG)
    assert start(machine) == 1
    assert machine.labels() == ["find_environment"]
    assert "the GPU does not answer: took more than 60 s" in capsys.readouterr().out


def test_tuning_gets_what_is_left(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = FakeMachine(out)
    machine.tuning = HANG
    begin = machine.time
    assert start(machine, "--minutes", "7") == 0
    assert machine.time - begin == pytest.approx(420 - run.MARGIN)
    assert len(read(out, "summary")["tuned"]) >= 2, "entries are kept one by one"
    assert "tuning ended by the clock: took more than" in capsys.readouterr().out
    late = FakeMachine(out.parent / "late", slow(measure_cell=31.0))
    start(late, "--minutes", "5")
    assert not late.labels("tune")


def test_crashed_tuning_is_tried_once_more(out: Path) -> None:
    machine = FakeMachine(out)
    machine.tuning = 60.0
    machine.broken = {"tune": "exit status -11"}
    assert start(machine) == 1
    assert machine.labels("tune") == ["tune", "tune"]
    assert len(read(out, "summary")["tuned"]) == 2


def test_cell_is_measured_only_after_its_checks(out: Path) -> None:
    machine = FakeMachine(out)
    assert start(machine, "--stages", "benchmark") == 3
    assert not machine.labels("measure_cell")
    assert read(out)["not_measured"][FORWARD].startswith("the gate did not check off, bias,")
    # the gate ran out of time before the peers: those rows are filled in the next call
    half = FakeMachine(out, lambda label: HANG if "flex" in label or "folded" in label else 5.0, workers=4)
    assert start(half, "--minutes", "3") == 3
    assert read(out)["cells"][FORWARD]["cases"]["flex bias"] == {"unavailable": "was not checked"}
    assert start(FakeMachine(out)) == 0
    assert "p50_ms" in read(out)["cells"][FORWARD]["cases"]["flex bias"]


def test_stages_can_be_chosen(out: Path) -> None:
    machine = FakeMachine(out)
    assert start(machine, "--stages", "gate", "--only", "forward") == 0
    assert not machine.labels("measure") + machine.labels("tune")
    assert len(read(out, "checks")["checks"]) == len(SOME)
    assert not any("T1 " in label for label in machine.labels("gate"))
    with pytest.raises(ValueError, match="`--only`: expected a kind that the table has"):
        start(machine, "--only", "profile")
    with pytest.raises(ValueError, match=r"`--minutes`: expected 2\.0 or more, got 1\.0"):
        start(machine, "--minutes", "1")


def test_all_cells_start_with_the_table() -> None:
    cells = all_cells()
    assert len(cells) == len(set(cells)) == 2 * 12 + 2 * 24 + 2 + 2
    assert [cell.in_table for cell in cells] == [True] * len(TABLE) + [False] * (len(cells) - len(TABLE))
    assert cells[0].key == FORWARD
    assert [cell.key for cell in cells].index("train") < 10
    assert {cell.kind for cell in all_cells(["decode"])} == {"decode"}


def test_main_without_gpu_names_alternative(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "INTERPRET", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(out), "--commit", "0123abc"]) == 2
    said = capsys.readouterr().err
    assert "expected an NVIDIA GPU" in said
    assert "got no CUDA device" in said
    assert "python benchmarks/attention_cpu.py" in said
    monkeypatch.setattr(command, "INTERPRET", True)
    assert command.main(["--out", str(out), "--commit", "0123abc"]) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err
    assert not out.exists()
