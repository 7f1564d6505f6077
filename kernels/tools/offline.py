"""Compile kernels for architectures that are not at hand, and check the assembler's reports. No GPU is needed.

    python -m tools.offline [--arch 90 ...] [--only "16/128 forward" ...] [--record FILE] [--write]

Every entry of the launch tables is built and compared with the record of the same version of Triton: more spilled
registers, other matrix instructions or too much shared memory are faults. Spills show as stack bytes; `LOCAL` of
cuobjdump stays 0 even then.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import rolesafe_kernels
import triton
from rolesafe_kernels.launch import INTERPRET, Launch, Tile, launch_table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rolesafe.files import write_whole
from rolesafe.terminal import run_main
from rolesafe.workers import Lost, results
from tools import PRELOAD
from tools.launches import KERNELS, resource_usage
from tools.loops import NO_WAIT, Loop, loop_of

SHARED_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
"""Bytes of shared memory that one program may have."""

PLAIN = {
    "ROLES": False, "BIAS": False, "INTEGRITY": False, "CAUSAL": True, "WINDOW": False, "SOFTCAP": False,
    "SINKS": False, "MASK": False, "RANGES": False, "SHARE": False, "TABLE": False, "LOOK": "all", "SPLIT": False,
    "DIFF": False, "COUNT": False, "TMA": False,
}  # fmt: skip
BIAS = {**PLAIN, "ROLES": True, "BIAS": True, "TABLE": True}
SHARE = {**BIAS, "SHARE": True, "LOOK": "share", "DIFF": True}
CHANNEL = {**SHARE, "INTEGRITY": True}

MASKED = {**BIAS, "MASK": True, "stride_ms": 1}
EXTRAS = {**BIAS, "WINDOW": True, "SOFTCAP": True, "SINKS": True, "RANGES": True}
DESCRIPTORS = {**CHANNEL, "TMA": True}

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "forward": {
        "plain": PLAIN, "bias": BIAS, "share": SHARE, "channel": CHANNEL, "mask": MASKED, "extras": EXTRAS,
        "descriptors": DESCRIPTORS,
    },
    "decode": {
        "plain": {**PLAIN, "SPLIT": True},
        "bias": {**BIAS, "SPLIT": True},
        "share": {**SHARE, "SPLIT": True, "LOOK": "both", "DIFF": False},
        "mask": {**MASKED, "SPLIT": True},
        "channel": {**CHANNEL, "SPLIT": True, "LOOK": "both", "DIFF": False},
        # documents are not decoded, and the merge takes the sinks
        "extras": {**EXTRAS, "SPLIT": True, "SINKS": False, "RANGES": False},
    },
    "dq": {
        "plain": PLAIN, "bias": BIAS, "share": SHARE, "channel": CHANNEL, "mask": MASKED, "extras": EXTRAS,
        "descriptors": DESCRIPTORS,
    },
    "dkdv": {
        "plain": PLAIN, "bias": BIAS, "share": SHARE, "channel": CHANNEL, "mask": MASKED, "extras": EXTRAS,
        "descriptors": DESCRIPTORS,
    },
    "lists": {"all": {"BN": 512}},
    "rows": {"channel": {**CHANNEL, "SINKS": True}},
    "merge": {"channel": {**CHANNEL, "SINKS": True, "BN": 64}},
}  # fmt: skip
"""Features of each variant: none; a table; a table and a share; all parts of the privileged channel; a table and a
(T, S) mask; a table with window, score cap, sinks and packed documents; the privileged channel with tokens read by
descriptors."""

MAIN = ("plain", "bias", "share", "channel")
"""Variants with a main loop that the record describes: the tiles were chosen for them."""

MAY_SPILL = ("mask", "extras", "descriptors")
"""Variants that may spill registers anywhere: no tile was chosen for them."""

TARGETS = ("sm_90 16/128 ",)
"""Beginnings of the names that must prefetch into at least three buffers, four in decode."""

LENGTH_LIMIT = {"forward": 1.05, "dq": 1.055, "dkdv": 1.05, "decode": 1.2}
"""Instructions of the main loop with a table over those without. dq adds up the score gradients: one addition each,
of 13.7 instructions. In decode, 27 of 35 more are addresses that the assembler computes anew.
"""

LOOPED = {"forward": ("k", "v"), "dq": ("k", "v"), "dkdv": ("q", "do")}
"""Operands that a kernel can read by descriptors."""

SMALL = {"lists": Tile(1, 1, 4, 1), "rows": Tile(16, 1, 4, 1), "merge": Tile(1, 1, 4, 1)}
"""Kernels without an entry in the tables, as `ops` and `decode` launch them."""

TOKENS = ("q", "k", "v", "o", "diff", "do", "dq", "dk", "dv")
POINTERS = {
    **dict.fromkeys(("lse", "lse_p", "rows", "sums", "dbias", "bias", "share", "sinks", "o_part", "lse_part"), "*fp32"),
    **dict.fromkeys(("blocks", "q_blocks", "k_blocks", "ranges", "q_ranges", "counts"), "*i32"),
    "q_roles": "*i8", "k_roles": "*i8", "mask": "*i1", "scale": "fp32", "softcap": "fp32",
}  # fmt: skip


class Job(NamedTuple):
    """One compilation."""

    arch: int
    bits: int
    width: int
    kernel: str
    variant: str
    tile: Tile

    @property
    def descriptors(self) -> bool:
        """True where the loop reads tokens by tensor descriptors."""
        return self.variant == "descriptors" or (self.kernel != "decode" and self.tile.descriptors)

    @property
    def entry(self) -> str:
        return f"sm_{self.arch} {self.bits}/{self.width} {self.kernel}"

    @property
    def name(self) -> str:
        return f"{self.entry} {self.variant}"


class Report(NamedTuple):
    """Bytes of stack and shared memory, numbers of matrix and copy instructions, and the main loop (see `Loop`)."""

    stack: int
    shared: int
    wgmma: int
    mma: int
    tcgen05: int
    cp_async: int
    bulk: int
    buffers: int
    waits: int
    instructions: int
    serial: int
    spills: int


SOURCES = (
    "layout.py",
    "tiles.py",
    "forward.py",
    "backward/__init__.py",
    "backward/rows.py",
    "backward/dq.py",
    "backward/dkdv.py",
)
"""Files that hold kernels."""


def source_hash() -> str:
    """Return the fingerprint of the kernels' code, without comments and docstrings.

    A record with another fingerprint is stale; of the launch tables it holds the tiles that it was made with.
    """
    here, parts = Path(rolesafe_kernels.__file__).parent, []
    for name in SOURCES:
        tree = ast.parse((here / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [x for x in body if not (isinstance(x, ast.Expr) and isinstance(x.value, ast.Constant))]  # type: ignore[attr-defined]
        parts.append(ast.unparse(tree))
    return sha256("".join(parts).encode()).hexdigest()[:16]


def build(job: Job) -> Report:
    """Compile `job` and return the assembler's report."""
    kernel = KERNELS[job.kernel]
    rows, block, warps, stages, _ = job.tile
    tiles = (block, rows) if job.kernel == "dkdv" else (rows, block)
    constants: dict[str, Any] = {
        **VARIANTS[job.kernel][job.variant],
        "GROUP": 4, "R": 5, "D": job.width, "DV": job.width, "BD": job.width, "BV": job.width,
        "BT": tiles[0], "BS": tiles[1], "TMA": job.descriptors,
    }  # fmt: skip
    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    token = "*fp32" if job.bits == 32 else "*bf16"
    kinds = {**POINTERS, **dict.fromkeys(TOKENS, token), **dict.fromkeys(constants, "constexpr")}
    signature = {name: kinds.get(name, "i32") for name in names}
    if job.kernel == "decode":
        signature["o"] = "*fp32"
    if job.descriptors:
        signature.update(dict.fromkeys(LOOPED[job.kernel], f"tensordesc<{token[1:]}[1, 1, {block}, {job.width}]>"))
    aligned = {i: [["tt.divisibility", 16]] for i, name in enumerate(names) if is_aligned(name, signature[name])}
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): attribute for i, attribute in aligned.items()},
    )
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    usage = resource_usage(compiled)
    counts = [
        len(re.findall(pattern, ptx))
        for pattern in (
            r"wgmma\.mma_async", r"\bmma\.sync", r"tcgen05\.mma", r"cp\.async\.c[ag]", r"cp\.async\.bulk\.tensor",
        )
    ]  # fmt: skip
    loop = loop_of(compiled, machine_code=job.variant in MAIN) if job.kernel not in SMALL else Loop(0, NO_WAIT, 0, 0, 0)
    return Report(*[usage.stack, usage.shared, *counts, *loop])


def is_aligned(name: str, kind: str) -> bool:
    """Return True where the launcher finds the argument divisible by 16: pointers and strides of tokens."""
    return kind.startswith("*") or (name.startswith("stride_") and not name.startswith("stride_m"))


def jobs_of(arch: int, bits: int, width: int, launch: Launch) -> Iterator[Job]:
    """Yield the compilations of one entry of a launch table.

    The usual head dims, 64 and 128 in 16 bits, are built in all variants, with descriptors on GPUs that have them;
    others with the whole channel alone.
    """
    usual = bits == 16 and width in (64, 128)
    chosen = VARIANTS["forward"] if usual else ("channel",)
    for kernel, variants in VARIANTS.items():
        if kernel in SMALL:
            if usual:
                yield from (Job(arch, bits, width, kernel, variant, SMALL[kernel]) for variant in variants)
            continue
        for variant in variants:
            if variant in chosen and (variant != "descriptors" or arch >= 90):
                yield Job(arch, bits, width, kernel, variant, getattr(launch, kernel))


def committed_jobs(arches: Iterable[int], only: Iterable[str] | None = None) -> list[Job]:
    """Return the compilations of the committed tables, or those with a name that begins with one of `only`."""
    jobs: list[Job] = []
    for arch in arches:
        table = launch_table(arch)
        # in fp32 not where a wider head has the same tiles: it needs less
        for key, launch in table.items():
            bits, dim = map(int, key.split("/"))
            if bits == 16 or launch != table.get(f"{bits}/{2 * dim}"):
                jobs += jobs_of(arch, bits, dim, launch)
    if only is None:
        return jobs
    chosen = tuple(f"sm_{arch} {start}" for arch in arches for start in only)
    return [job for job in jobs if job.name.startswith(chosen)]


def find_fault(job: Job, report: Report | Lost, known: Report | None = None) -> str | None:
    """Return the fault of a compiled kernel; None if it has none.

    fp32, head dims above 128 and the variants in MAY_SPILL may spill, the others (but TARGETS) outside of their main
    loop; none more than in the record (`known`).
    """
    if isinstance(report, Lost):
        return report.reason
    stack = 0
    if job.kernel not in SMALL and not (job.variant in MAIN and job.name.startswith(TARGETS)):
        stack = report.stack if known is None else known.stack
    if report.stack > stack:
        return f"{report.stack} bytes of spilled registers, expected {stack}"
    if report.spills and job.bits == 16 and job.width <= 128:
        return f"{report.spills} moves of spilled registers in its main loop"
    if report.shared > SHARED_LIMIT[job.arch]:
        return f"{report.shared} bytes of shared memory, limit {SHARED_LIMIT[job.arch]}"
    if job.kernel not in SMALL and not (report.wgmma or report.mma or report.tcgen05):
        return "no matrix instruction"
    if job.descriptors and not report.bulk:
        return "no bulk copy, though tokens are read by descriptors"
    if job.variant in MAIN and job.kernel not in SMALL:
        if report.buffers < 2 and job.bits == 16 and job.width <= 128:
            return "its main loop is no pipeline"
        if report.waits == 0:
            return "its main loop waits for all of its copies: nothing is prefetched"
        if report.serial and (known is None or not known.serial or job.name.startswith(TARGETS)):
            return "its matrix products wait for each other (ptxas C7515)"
        least = 4 if job.kernel == "decode" else 3
        if job.name.startswith(TARGETS) and report.buffers < least:
            return f"{report.buffers} buffers in its main loop, expected {least}"
    for name in ("wgmma", "tcgen05"):
        if known is not None and getattr(known, name) and not getattr(report, name):
            return f"no {name} instruction, expected {getattr(known, name)}"
    return None


def compare_lengths(reports: Mapping[str, Report]) -> list[str]:
    """Return the faults of main loops in TARGETS that a table makes longer than LENGTH_LIMIT allows."""
    faults = []
    for name, report in reports.items():
        if name.startswith(TARGETS) and name.endswith(" bias"):
            plain = reports.get(name.removesuffix("bias") + "plain")
            limit = LENGTH_LIMIT[name.split()[2]]
            if plain is not None and report.instructions > limit * plain.instructions:
                faults.append(
                    f"{name}: {report.instructions} instructions in its main loop, "
                    f"{plain.instructions} without a table, limit {limit}x"
                )
    return faults


JOB_LIMIT = 600.0
"""Seconds that one compilation may take."""


def read_record(path: Path) -> dict[str, Any]:
    """Return the record: by version of Triton the source's fingerprint, the tiles, and a `Report` for each kernel."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return data


def tiles_of(jobs: Iterable[Job]) -> dict[str, list[int]]:
    """Return the tile of each kernel and entry, descriptors as 0 or 1."""
    return dict(sorted((job.entry, [*map(int, job.tile)]) for job in jobs))


def read_reports(path: Path, version: str) -> dict[str, Report]:
    """Return the reports in the record of one version of Triton, by name of the job."""
    return {name: Report(*fields) for name, fields in read_record(path)[version]["kernels"].items()}


def render(record: dict[str, Any]) -> str:
    """Return a record as JSON with a kernel a line."""
    return (
        re.sub(r"\[\s+([-\d,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(record, indent=1)) + "\n"
    )


def check(jobs: list[Job], record: Path | None, write: bool, workers: int) -> int:
    """Build `jobs`, print a line for each; return 1 if any has a fault.

    With `write` the record is made, kernel by kernel: what it holds of the same source and tiles is kept and not built
    again.
    """
    version, known, found = triton.__version__, dict[str, Report](), dict[str, Report]()
    if record is not None and not write:
        if version not in read_record(record):
            print(f"{record} has no triton {version}: nothing to compare with; use --write to make a record")
            return 1
        known = read_reports(record, version)
    tiles = tiles_of(jobs)
    if record is not None and write:
        kept = read_record(record).get(version, {})
        if kept.get("source") == source_hash():
            tiles = kept["tiles"] | tiles
            same = {name for name, tile in tiles.items() if kept["tiles"].get(name) == tile}
            found = {name: one for name, one in read_reports(record, version).items() if name.rsplit(" ", 1)[0] in same}
        jobs = [job for job in jobs if job.name not in found]
        print(f"{len(found)} kernels of this source are in the record")
    wrong = 0
    outcomes = results(build, [(job,) for job in jobs], workers, limit=JOB_LIMIT, preload=PRELOAD)
    for done, ((job,), report) in enumerate(outcomes, 1):
        fault = find_fault(job, report, known.get(job.name))
        wrong += fault is not None
        if isinstance(report, Report):
            found[job.name] = report
            if record is not None and write:
                kernels = {name: list(one) for name, one in sorted(found.items())}
                made = {"source": source_hash(), "fields": Report._fields, "tiles": tiles, "kernels": kernels}
                data = {**read_record(record), version: made}
                write_whole(record, render(data))
        print(f"[{done}/{len(jobs)}] {job.name:40} {'FAULT: ' + fault if fault else 'ok'}", flush=True)
    faults = compare_lengths(found)
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"triton {version}: {len(jobs) - wrong} of {len(jobs)} without fault")
    return int(wrong > 0 or bool(faults))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--only", nargs="+", help="beginnings of names: bits/width, then the kernel and the variant")
    parser.add_argument("--record", type=Path, help="JSON with the reports of earlier builds, by version of Triton")
    parser.add_argument(
        "--write", action="store_true", help="write the record, or go on with it, instead of comparing with it"
    )
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if INTERPRET:
        parser.error("TRITON_INTERPRET is set, so nothing is compiled; unset it")
    return check(committed_jobs(arguments.arch, arguments.only), arguments.record, arguments.write, arguments.workers)


if __name__ == "__main__":
    run_main(main)
