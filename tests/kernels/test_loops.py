"""The main loop of a kernel, as `tools.loops` reads it from Triton's IR and from machine code."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="Triton is for Linux")

from tools import loops


def ir(buffers: int, waits: int, operations: int) -> str:
    """A loop over tiles of 64 x 128, and a number that is prefetched into a single buffer."""
    body = [
        f"%k = ttg.memdesc_index %k_all[%i] : !ttg.memdesc<{buffers}x64x128xbf16, #shared> -> !ttg.memdesc<64x128>",
        "%n = ttg.memdesc_index %n_all[%i] : !ttg.memdesc<1x1xi32, #shared> -> !ttg.memdesc<1xi32>",
        f"%w = ttg.async_wait %a, %b {{num = {waits} : i32}} loc(#loc1)",
        "%s = ttng.warp_group_dot %q, %k, %zero {isAsync = true} : !ttg.memdesc<128x128xbf16>",
        "%branch = scf.if %c -> (tensor<64xf32>) {",
        "}",
        *["%x = arith.addi %x, %y : i32"] * operations,
    ]
    inside = "\n".join(f"      {line}" for line in body)
    return f"    %acc:2 = scf.for %i = %a to %b step %c iter_args(%x = %y) -> (i32) {{\n{inside}\n    }} loc(#loc)\n"


def test_prefetch_is_that_of_the_shortest_loops() -> None:
    main, edges = ir(3, 2, 40), ir(1, 0, 200)
    assert loops.prefetch_of(edges + main) == (3, 2)
    assert loops.prefetch_of(main + edges) == (3, 2)
    assert loops.prefetch_of(edges) == (1, 0)
    # two looks, two main loops: the worse one counts
    assert loops.prefetch_of(main + edges + ir(2, 1, 42)) == (2, 1)


def test_prefetch_without_a_loop_or_a_pipeline() -> None:
    assert loops.prefetch_of("module {\n}\n") == (0, loops.NO_WAIT)
    bare = "  scf.for %i = %a to %b step %c : i32 {\n    %s = tt.dot %a, %b, %c : tensor<16x16xf32>\n  } loc(#loc)\n"
    assert loops.prefetch_of(bare) == (0, loops.NO_WAIT)


def test_prefetch_skips_a_loop_around_others() -> None:
    around = "  scf.for %i = %a to %b step %c : i32 {\n" + ir(3, 2, 40) + "    %s = tt.dot %a, %b, %c : t\n  }\n"
    assert loops.prefetch_of(around) == (3, 2)


def sass(*bodies: list[str]) -> str:
    """Loops one after the other, each ending with a jump to its start."""
    lines, at = [], 0
    for body in bodies:
        start = at
        for text in (*body, f"@P0 BRA {start:#x}"):
            lines.append(f"        /*{at:04x}*/                   {text} ;   /* 0x000000000000 */")
            at += 16
    return "\n".join(lines)


ADD, PRODUCT, WAIT = "FADD R1, R2, R3", "HGMMA.64x64x16.F32.BF16 R8, gdesc[UR4], R8", "WARPGROUP.DEPBAR.LE gsb0, 0x0"


def test_length_is_that_of_the_loop_with_whole_blocks() -> None:
    edge, main = [PRODUCT] * 3 + [ADD] * 2, [PRODUCT] * 4 + [ADD] * 10 + [WAIT]
    assert loops.length_of(sass(edge, main)) == (16, 0, 0)
    assert loops.length_of(sass(main + [ADD] * 30, main)) == (16, 0, 0)
    assert loops.length_of(sass([ADD] * 9)) == (0, 0, 0)


def test_serial_products_are_found() -> None:
    assert loops.length_of(sass([PRODUCT, WAIT] * 4)) == (9, 1, 0)
    assert loops.length_of(sass([PRODUCT] * 4 + [WAIT] * 2)) == (7, 0, 0)
    # two products and two waits are what the program asks for
    assert loops.length_of(sass([PRODUCT, WAIT] * 2)) == (5, 0, 0)


def test_spills_of_the_main_loop_are_counted() -> None:
    edge, main = [PRODUCT] * 3 + ["STL [R1+0x8], R4"] * 5, [PRODUCT] * 4 + ["LDL.64 R4, [R1]", "STL [R1], R4", ADD]
    assert loops.length_of(sass(edge, main)) == (8, 0, 2)
