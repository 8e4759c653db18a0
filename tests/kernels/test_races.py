"""The search for races finds them, and nothing else: one short kernel for every rule it has."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers.paths import PYTHONPATH, TESTS
from helpers.races.audit import pointer, races
from helpers.races.ptx import kernels_of

TWINS = TESTS / "helpers" / "races" / "twins.py"
HEAD = """
.extern .shared .align 16 .b8 memory[];
.visible .entry kernel(
	.param .u64 kernel_param_0,
	.param .u32 kernel_param_1
)
.maxntid 64, 1, 1
{
	.reg .b32 %r<9>;
	ld.param.u64 %rd1, [kernel_param_0];
	ld.param.u32 %r1, [kernel_param_1];
	mov.u32 %r2, %tid.x;
	mad.wide.s32 %rd2, %r2, 4, %rd1;
	setp.eq.s32 %p1, %r2, 0;
"""
FIRST = "@%p1 st.global.u32 [%rd1], %r1;"  # by thread 0
ALL = "ld.global.u32 %r3, [%rd1];"  # one word by all
DATA = "setp.ne.s32 %p2, %r3, 0;"  # known to nobody
BAR = "bar.sync 0;"
COPY = "cp.async.cg.shared.global [%r4], [%rd3], 16;"
PLACES = "shl.b32 %r5, %r2, 4; mov.u32 %r6, memory; add.s32 %r4, %r5, %r6; cvt.u64.u32 %rd4, %r5;"
PLACES += "add.s64 %rd3, %rd1, %rd4;"
SHARED = "shl.b32 %r5, %r2, 2; mov.u32 %r6, memory; add.s32 %r4, %r5, %r6;"
LOOP = "mov.u32 %r7, 0; {top}: {body} add.s32 %r7, %r7, 1; setp.lt.s32 %p3, %r7, 3; @%p3 bra {top};"

RACY = {
    "load, then store": [ALL, FIRST],
    "store, then load": [FIRST, ALL],
    "a shuffle is no barrier": [ALL, "shfl.sync.down.b32 %r4, %r3, 1, 31, -1;", FIRST],
    "a barrier of a warp is none of the block": [ALL, "bar.warp.sync -1;", FIRST],
    "a barrier of some warps": [ALL, "bar.sync 1, 32;", FIRST],
    "barrier on one path": [ALL, DATA, "@%p2 bra $A;", BAR, "$A:", FIRST],
    "only where a branch on data leads": [ALL, DATA, "@%p2 bra $A;", FIRST, "$A:", BAR],
    "around a loop": [LOOP.format(top="$A", body="\n".join([BAR, ALL, FIRST]))],
    "into the next turn": [LOOP.format(top="$A", body="\n".join([FIRST, BAR, ALL]))],
    "an endless loop": ["$A:", FIRST, BAR, ALL, DATA, "@%p2 bra $A;"],
    "a neighbour's word": ["ld.global.u32 %r3, [%rd2+4];", "st.global.u32 [%rd2], %r3;"],
    "half a word": ["ld.global.u16 %rs1, [%rd1+2];", FIRST],
    "any word": [
        "ld.global.u32 %r3, [%rd2];", "mad.wide.s32 %rd3, %r3, 4, %rd1;",
        "st.global.u32 [%rd3], %r3;",
    ],
    "an atomic and a store": ["atom.global.add.u32 %r3, [%rd1], 1;", FIRST],
    "two stores": [FIRST, "st.global.u32 [%rd1], %r2;"],
    "a selected address": [
        "selp.b64 %rd3, %rd1, %rd2, %p1;", "ld.global.u32 %r3, [%rd3+4];",
        "st.global.u32 [%rd2], %r3;",
    ],
    "shared memory": [
        SHARED, "st.shared.u32 [%r4], %r1;", "ld.shared.u32 %r3, [%r6];",
    ],
    "a copy on the way": [PLACES, COPY, "cp.async.commit_group;", BAR, "ld.shared.u32 %r3, [%r4];"],
    "the later of two copies": [
        PLACES, "cp.async.commit_group;", COPY, "cp.async.commit_group;",
        "cp.async.wait_group 1;", "ld.shared.u32 %r3, [%r4];",
    ],
    "another's copy": [
        PLACES, COPY, "cp.async.commit_group;", "cp.async.wait_group 0;",
        "ld.shared.u32 %r3, [%r6];",
    ],
    "another block's memory": [
        SHARED, "st.shared.u32 [%r4], %r1;", BAR, "mapa.shared::cluster.u32 %r7, %r4, 1;",
        "ld.shared::cluster.u32 %r3, [%r7];",
    ],
    "a barrier that some do not reach": ["@%p1 bra $A;", BAR, "$A:"],
}  # fmt: skip
FINE = {
    "an index in half a register": [
        "mov.b64 %rd5, {%r2, %r1};", "mov.b64 {_, %r6}, %rd5;", "mov.b64 {%r4, _}, %rd5;",
        "mad.lo.s32 %r5, %r6, 64, %r4;", "mad.wide.s32 %rd3, %r5, 4, %rd1;",
        "ld.global.u32 %r3, [%rd3];", "st.global.u32 [%rd2+1792], %r3;",
    ],
    "barrier": [ALL, BAR, FIRST],
    "barrier before the load": [FIRST, BAR, ALL],
    "barrier.sync": [ALL, "barrier.sync 0;", FIRST],
    "barrier on both paths": [
        ALL, DATA, "@%p2 bra $A;", BAR, "bra $B;", "$A:", BAR, "$B:", FIRST,
    ],
    "barriers in a loop": [LOOP.format(top="$A", body="\n".join([FIRST, BAR, ALL, BAR]))],
    "one's own word": ["ld.global.u32 %r3, [%rd2];", "st.global.u32 [%rd2], %r3;"],
    "one's own word of a tile": [
        LOOP.format(
            top="$A",
            body="mad.wide.s32 %rd3, %r7, 256, %rd2; ld.global.u32 %r3, [%rd3];"
            "st.global.u32 [%rd3], %r3;",
        )
    ],
    "the same thread": [FIRST, "@%p1 ld.global.u32 %r3, [%rd1];"],
    "other threads": [
        "setp.lt.s32 %p2, %r2, 8;", "@%p2 ld.global.u32 %r3, [%rd2];",
        "@!%p2 st.global.u32 [%rd2], %r1;",
    ],
    "half a word of one's own": ["ld.global.u16 %rs1, [%rd2+2];", "st.global.u16 [%rd2], %rs1;"],
    "a masked digit": [
        "ld.global.u32 %r3, [%rd2];", "and.b32 %r4, %r3, 15;", "mul.wide.u32 %rd3, %r4, 4;",
        "add.s64 %rd4, %rd1, %rd3;", "atom.global.add.u32 %r5, [%rd4+4096], 1;",
        "ld.global.u32 %r6, [%rd2+4160];",
    ],
    "atomics": ["atom.global.add.u32 %r3, [%rd1], 1;", "ld.relaxed.gpu.global.u32 %r4, [%rd1];"],
    "loads": [ALL, ALL],
    "shared memory": [
        SHARED, "st.shared.u32 [%r4], %r1;", BAR, "ld.shared.u32 %r3, [%r6];",
    ],
    "a barrier of the warp for a word of the warp": [
        "and.b32 %r5, %r2, 32; shl.b32 %r5, %r5, 2; mov.u32 %r6, memory; add.s32 %r4, %r5, %r6;",
        "and.b32 %r7, %r2, 31; setp.eq.s32 %p2, %r7, 0;", "@%p2 st.shared.u32 [%r4], %r1;",
        "bar.warp.sync -1;", "ld.shared.u32 %r3, [%r4];",
    ],
    "one's own copy": [
        PLACES, COPY, "cp.async.commit_group;", "cp.async.wait_group 0;",
        "ld.shared.u32 %r3, [%r4];",
    ],
    "another's copy": [
        PLACES, COPY, "cp.async.commit_group;", "cp.async.wait_group 0;", BAR,
        "ld.shared.u32 %r3, [%r6];",
    ],
    "another block's memory": [
        SHARED, "st.shared.u32 [%r4], %r1;", "barrier.cluster.arrive.release;",
        "barrier.cluster.wait.acquire;", "mapa.shared::cluster.u32 %r7, %r4, 1;",
        "ld.shared::cluster.u32 %r3, [%r7];",
    ],
    "a choice among one's own words": [
        "ld.global.u32 %r3, [%rd2+1024];", DATA, "mov.u64 %rd3, %rd2;", "@%p2 bra $A;",
        "add.s64 %rd3, %rd2, 256;", "$A:", "ld.global.u32 %r4, [%rd3];",
        "st.global.u32 [%rd3], %r4;",
    ],
    "an index that a comparison rules out": [
        "ld.global.u32 %r3, [%rd1+4096];", DATA, "mov.u32 %r4, %r2;", "@%p2 bra $A;",
        "mov.u32 %r4, 99;", "$A:", "setp.eq.s32 %p3, %r4, 99;", "@%p3 bra $B;",
        "mad.wide.s32 %rd3, %r4, 4, %rd1;", "st.global.u32 [%rd3], %r1;", "$B:",
        "ld.global.u32 %r5, [%rd1+396];",
    ],
}  # fmt: skip


def faults(body: list[str]) -> tuple[list[str], list[str]]:
    lines = "\n".join(body).replace(";", ";\n").replace("$A:", "$A:\n")
    (kernel,) = kernels_of(f"{HEAD}{lines}\n\tret;\n}}\n")
    return races(kernel, [({(0, 0): pointer(0), (1, 0): 7}, {})])


@pytest.mark.parametrize("name", RACY)
def test_a_race_is_found(name: str) -> None:
    reported, unseen = faults(RACY[name])
    assert len(reported) == 1 and not unseen, reported


@pytest.mark.parametrize("name", FINE)
def test_what_is_no_race_is_not_found(name: str) -> None:
    assert faults(FINE[name]) == ([], [])


def test_code_that_is_never_reached_is_told() -> None:
    body = ["setp.gt.s32 %p2, %r1, 8;", "@!%p2 bra $A;", FIRST, "$A:", ALL]
    reported, unseen = faults(body)
    assert not reported and len(unseen) == 1 and unseen[0].startswith("st.global.u32 at line")


@pytest.mark.slow
def test_of_two_compiled_twins_the_one_without_a_barrier() -> None:
    pytest.importorskip("triton", reason="backend triton is missing")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = PYTHONPATH
    done = subprocess.run(
        [sys.executable, TWINS], capture_output=True, text=True, env=env, check=True
    )
    racy, fine = (json.loads(line) for line in done.stdout.splitlines())
    (race,) = racy["races"]
    assert "twins.py" in race and "ld.global" in race and "st.global" in race
    assert fine == {"barrier": True, "races": [], "unseen": []} and not racy["unseen"]
