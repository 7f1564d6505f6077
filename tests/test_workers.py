"""Jobs in worker processes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from rolesafe import workers
from rolesafe.workers import Job, Lost, Tell, Update, progress_bars

# what every process needs, but not the training code that `workers.PRELOADED` imports for seconds
PRELOAD = ["torch"]
results = partial(workers.results, preload=PRELOAD)
updates = partial(workers.updates, preload=PRELOAD)


def work(job: Job, tell: Tell) -> None:
    name, count = job
    if name == "broken":
        raise RuntimeError(f"job {count} is broken")
    if name == "dies":
        os._exit(3)
    if name == "sleeps":
        Path(count).write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(60)
    if name == "killed":  # while it writes
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            tell(Update(job, "training", 0.5, run="x" * 100_000))
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "silent":
        return
    tell(Update(job, "training", 0.5))
    tell(Update(job, "done", 1.0, run=count))


def test_updates_failed_jobs_do_not_end_others() -> None:
    jobs = [("broken", 1), ("dies", 2), ("works", 3), ("works", 4)]
    told = list(updates(work, jobs, workers=2))
    assert {u.job: u.run for u in told if u.stage == "done"} == {("works", 3): 3, ("works", 4): 4}
    failed = {u.job: u.error for u in told if u.stage == "failed"}
    assert failed["broken", 1] == "RuntimeError: job 1 is broken"
    assert "died with code 3" in str(failed["dies", 2])
    traces = {u.job: u.trace for u in told if u.error is not None}
    assert "Traceback" in str(traces["broken", 1])
    assert traces["dies", 2] is None


def capitals(text: str) -> str:
    if text == "error":
        raise ValueError("no such tile")
    if text == "death":
        os._exit(7)
    if text == "hang":
        time.sleep(60)
    return text.upper()


def test_results_of_failing_jobs_are_lost() -> None:
    found = dict(results(capitals, [("a",), ("error",), ("death",), ("b",)], 2, limit=60.0))
    assert (found["a",], found["b",]) == ("A", "B")
    assert found["error",] == Lost("ValueError: no such tile")
    assert "code 7" in found["death",].reason


def test_results_after_limit_are_lost() -> None:
    assert dict(results(capitals, [("a",)])) == {("a",): "A"}, "the server that starts processes is up"
    found = dict(results(capitals, [("hang",), ("a",)], 2, limit=4.0))
    assert found == {("hang",): Lost("took too long"), ("a",): "A"}
    late = dict(results(capitals, [("d",), ("e",)], 1, until=time.monotonic()))
    assert set(late.values()) == {Lost("no time left")}


def test_updates_killed_worker_fails_only_its_job() -> None:
    jobs = [("killed", 1), ("works", 2), ("silent", 3), *(("works", n) for n in range(4, 8))]
    told = list(updates(work, jobs, workers=3))
    assert {u.run for u in told if u.stage == "done"} == {2, 4, 5, 6, 7}
    failed = {u.job: u.error for u in told if u.stage == "failed"}
    assert failed == {
        ("killed", 1): "its process was ended by SIGKILL, as when memory runs out",
        ("silent", 3): "its process died with code 0",
    }


def test_updates_closed_early_leaves_no_process(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    running = updates(work, [("sleeps", str(file)), ("works", 1)], workers=2)
    assert next(running).job == ("works", 1)
    assert waits(file.exists)
    running.close()
    assert not alive(int(file.read_text(encoding="utf-8")))


def test_progress_bars_hostile_names_have_no_effect() -> None:
    job = ("[bold red]a[/x]\x1b]0;owned\x07", 0)
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with progress_bars(console, [job], [job]) as tell:
        tell(Update(job, "[/]\x1b[1m\n", 1.0))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold red]a[/x]\\x1b]0;owned\\x07 0" in said
    assert "[/]\\x1b[1m\\x0a" in said
    assert "\x1b]" not in said
    assert "\x1b[1m" not in said


def test_updates_killed_parent_ends_its_jobs(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "from tests.test_workers import updates, work\n"
        f"if __name__ == '__main__':\n    list(updates(work, [('sleeps', {str(file)!r})], workers=1))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code, encoding="utf-8")
    root = Path(__file__).resolve().parents[1]
    parent = subprocess.Popen([sys.executable, str(script)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        assert waits(file.exists), "the job never started"
        parent.kill()
        parent.wait(timeout=60)
        child = int(file.read_text(encoding="utf-8"))
        assert waits(lambda: not alive(child)), "the job went on without its parent"
    finally:
        parent.kill()


def waits(holds, seconds: float = 40.0) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.1)
    return bool(holds())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text(encoding="utf-8").split(") ")[1][0] != "Z"
