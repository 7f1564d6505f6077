"""Read the main loop of a compiled kernel: its prefetching from Triton's IR, its length from the machine code.

The main loop is the one over blocks of one role that every row sees in full. Other innermost loops with matrix products
read their blocks token by token.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tools.launches import dump

SAME = 1.25
"""Loops up to so many times as long as the shortest are main loops too: a share runs through one in each look."""
NO_WAIT = -1
"""Copies in flight of a loop without asynchronous copies, or with copies by descriptor, which wait at barriers."""
DOT = re.compile(r"warp_group_dot |tt\.dot |tc_gen5_mma ")
TILE = re.compile(r"memdesc_index .*: !ttg\.memdesc<(\d+)x\d+x\d+")
WAIT = re.compile(r"ttg\.async_wait .*\{num = (\d+)")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)


class Loop(NamedTuple):
    """Main loop of a kernel.

    Attributes:
        buffers: Least number of buffers of a tile that it reads from shared memory; 0 without a pipeline.
        waits: Least number of copies that stay in flight where it waits for one, or NO_WAIT.
        instructions: Machine instructions of one pass.
        serial: 1 where each asynchronous matrix product waits for the one before (note C7515 of the assembler).
        spills: Machine instructions of one pass that move spilled registers.
    """

    buffers: int
    waits: int
    instructions: int
    serial: int
    spills: int


def loop_of(compiled: Any, machine_code: bool = True) -> Loop:
    """Return the main loop of a compiled kernel; without `machine_code` its last three fields are 0."""
    buffers, waits = prefetch_of(compiled.asm["ttgir"])
    return Loop(buffers, waits, *(length_of(dump(compiled, "--dump-sass")) if machine_code else (0, 0, 0)))


def prefetch_of(ttgir: str) -> tuple[int, int]:
    """Return buffers and waits of the main loop in Triton's IR; 0 and NO_WAIT where no loop multiplies matrices."""
    lines, open_loops, loops = ttgir.splitlines(), list[tuple[int, int]](), list[list[str]]()
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if re.search(r"(^|= )\s*scf\.for ", line):
            open_loops.append((number, indent))
        elif open_loops and line.startswith("}", indent) and indent == open_loops[-1][1]:
            start = open_loops.pop()[0]
            body = lines[start + 1 : number]
            if not any("scf.for " in inner for inner in body) and any(map(DOT.search, body)):
                loops.append(body)
    shortest = min(map(len, loops), default=0)
    buffers, waits = [], []
    for body in loops:
        if len(body) <= SAME * shortest:
            # a tile has two dimensions behind the number of its buffers
            buffers += [int(found[1]) for found in map(TILE.search, body) if found]
            waits += [int(found[1]) for found in map(WAIT.search, body) if found]
    return min(buffers, default=0), min(waits, default=NO_WAIT)


def length_of(machine_code: str) -> tuple[int, int, int]:
    """Return instructions of the main loop, 1 where its matrix products are serial, and its moves of spilled registers.

    All are 0 without such a loop.
    """
    code = [(int(found[1], 16), found[2]) for found in INSTRUCTION.finditer(machine_code)]
    spans = []
    for at, text in code:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= at:
            spans.append((int(jump[1], 16), at))
    bodies = []
    for start, end in spans:
        inner = any(start <= s and e <= end for s, e in spans if (s, e) != (start, end))
        body = [text for at, text in code if start <= at <= end]
        if not inner and products(body):
            bodies.append(body)
    if not bodies:
        return 0, 0, 0
    # a part of an edge holds fewer keys than a block, thus fewer products
    most = max(map(products, bodies))
    bodies = [body for body in bodies if products(body) == most]
    shortest = min(map(len, bodies))
    main = [body for body in bodies if len(body) <= SAME * shortest]
    waits = [sum("WARPGROUP.DEPBAR" in text for text in body) for body in main]
    spills = max(sum(bool(re.search(r"\b(LDL|STL)\b", text)) for text in body) for body in main)
    return max(map(len, main)), int(most > 2 and max(waits) >= most), spills


def products(body: list[str]) -> int:
    """Return the number of matrix instructions."""
    return sum(bool(re.search(r"\b(H|HG|UTCH|UTCQ)MMA\b", text)) for text in body)
