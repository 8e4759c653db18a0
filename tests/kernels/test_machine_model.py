"""The machine model counts what a row executes, and predicts times from it.

``data/reviewed.sass.gz`` is what ``nvdisasm -c`` of CUDA 13.0 and Triton 3.7.1 prints of five
kernels of commit 97e3deb for sm_90, with short names. Their instructions were counted by hand.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from helpers.machine_limits import LIMITS, Limit, complaints

from tools.machine_model import cuda, sass, tiling, write
from tools.machine_model.flow import Flow
from tools.machine_model.loops import LoopCount, Streams, main_loops
from tools.machine_model.machine import A100, B200, H200
from tools.machine_model.prediction import Kernel, from_dict, predict, to_dict
from tools.machine_model.sass import Function, Instruction, parse
from w2s_fast import W2SError

REVIEWED = Path(__file__).parent / "data" / "reviewed.sass.gz"
HARD_BF16, HARD_FP32, DENSE_BF16 = Streams(2, 2), Streams(4, 4), Streams(4, 2)


@cache
def reviewed() -> dict[str, Function]:
    return {f.name: f for f in parse(gzip.decompress(REVIEWED.read_bytes()).decode())}


def per_element(loops: list[LoopCount], what: str = "instructions") -> dict[str, float]:
    return {n.kind: getattr(n, what) / n.elements for n in loops}


# Function -> bytes of an element, instructions an element as counted by hand.
BY_HAND = {
    "cuda_hard_bf16": (HARD_BF16, {"fetch": 2.6, "pass": 13.0, "write": 9.5}),
    "cuda_hard_fp32": (HARD_FP32, 32),
    "cuda_dense_bf16": (DENSE_BF16, 40.8),
    "triton_hard_bf16": (HARD_BF16, 18.0),
    "triton_dense_bf16": (DENSE_BF16, 30.8),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_agree_with_those_made_by_hand(name: str) -> None:
    streams, expected = BY_HAND[name]
    counts = per_element(main_loops(reviewed()[name], streams))
    if isinstance(expected, dict):
        assert counts == pytest.approx(expected, abs=0.05)
    else:
        # By hand, the copies of dense labels in fetch were counted more coarsely.
        within = 0.04 if name == "cuda_dense_bf16" else 0.01
        assert sum(counts.values()) == pytest.approx(expected, rel=within)


def test_exponentials_and_bytes_of_the_reviewed_kernels() -> None:
    cuda = main_loops(reviewed()["cuda_hard_bf16"], HARD_BF16)
    assert per_element(cuda, "exponentials") == {"fetch": 0, "pass": 1, "write": 1}
    assert per_element(cuda, "loaded") == {"fetch": 2, "pass": 0, "write": 0}
    assert per_element(cuda, "shared") == {"fetch": 2, "pass": 2, "write": 2}
    assert per_element(cuda, "stored") == {"fetch": 0, "pass": 0, "write": 2}
    assert not any(n.narrow for n in cuda)
    triton = main_loops(reviewed()["triton_dense_bf16"], DENSE_BF16)
    assert per_element(triton, "loaded") == {"pass": 4, "write": 4}
    assert per_element(triton, "exponentials") == {"pass": 33 / 32, "write": 1}


def changed(f: Function, change: Callable[[Instruction], list[Instruction]]) -> Function:
    """A function in which every instruction becomes several; labels move along."""
    parts = [change(i) for i in f.code]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + len(part))
    labels = {label: starts[at] for label, at in f.labels.items()}
    return Function(f.name, tuple(i for part in parts for i in part), labels)


def twice(which: Callable[[Instruction], bool], **new: str) -> Callable[..., list[Instruction]]:
    return lambda i: [i, replace(i, **new)] if which(i) else [i]


def is_load(i: Instruction) -> bool:
    return i.wide and i.base in ("LDG", "LDS")


def is_exponential(i: Instruction) -> bool:
    return i.opcode == "MUFU.EX2"


@pytest.mark.parametrize("name", ["cuda_hard_bf16", "triton_dense_bf16"])
def test_a_doubled_exponential_counts_twice(name: str) -> None:
    function, streams = reviewed()[name], BY_HAND[name][0]
    before = per_element(main_loops(function, streams), "exponentials")
    after = per_element(
        main_loops(changed(function, twice(is_exponential)), streams), "exponentials"
    )
    assert after == {kind: 2 * cost for kind, cost in before.items()}


@pytest.mark.parametrize("name", ["cuda_hard_bf16", "triton_dense_bf16"])
@pytest.mark.parametrize("address", ["same", "other"])
def test_a_doubled_load_counts_twice(name: str, address: str) -> None:
    function, streams = reviewed()[name], BY_HAND[name][0]
    new = {} if address == "same" else {"operands": "R240, desc[UR4][R244.64]"}
    before = main_loops(function, streams)
    after = main_loops(changed(function, twice(is_load, **new)), streams)
    for old, more in zip(before, after, strict=True):
        # A tile of Triton has one exponential more than elements.
        assert old.elements <= more.elements <= old.elements + 1
        if old.kind != "fetch":
            assert more.loaded + more.shared == 2 * (old.loaded + old.shared)


@pytest.mark.parametrize("name", BY_HAND)
def test_one_instruction_more_an_element_shows(name: str) -> None:
    function, streams = reviewed()[name], BY_HAND[name][0]
    more = twice(is_exponential, opcode="FADD", operands="R200, R200, R201")
    before = sum(per_element(main_loops(function, streams)).values())
    after = sum(per_element(main_loops(changed(function, more), streams)).values())
    assert after == pytest.approx(
        before + 2, abs=0.1
    )  # an exponential in the pass, one in the write


def function(text: str) -> Function:
    """A function from lines of ``label:`` and instructions."""
    lines = [".text.f:"]
    for word in (line.strip() for line in text.strip().splitlines()):
        lines.append(word if word.endswith(":") else f"/*0000*/ {word} ;")
    (found,) = parse("\n".join(lines))
    return found


def count(text: str, streams: Streams = HARD_BF16, inner: int = 1) -> list[LoopCount]:
    return main_loops(function(text), streams, inner)


EIGHT = "MUFU.EX2 R9, R9\n" * 8
PASS = """
.L_0:
  IADD3 R2, R2, R3, RZ
  LDG.E.128 R4, desc[UR4][R2.64]
  {work}
  @P0 BRA `(.L_0)
  EXIT
"""


def test_the_ends_of_a_row_are_off_the_path() -> None:
    (found,) = count(f"""
    .L_0:
      ISETP.GE.AND P0, PT, R1, R2, PT
      @P0 BRA `(.L_2)
      LDG.E.U16 R4, desc[UR4][R2.64]
      BRA `(.L_3)
    .L_2:
      LDG.E.128 R4, desc[UR4][R2.64]
      FADD R5, R5, R4
    .L_3:
      {EIGHT}
      @P1 BRA `(.L_0)
      EXIT
    """)
    assert (found.kind, found.elements, found.instructions, found.narrow) == ("pass", 8, 13, 0)


def test_what_is_seldom_needed_is_off_the_path() -> None:
    """A maximum that grows, a soft-cap in a function of its own, a diverged warp."""
    for rare in ("FMUL R1, R1, R2", "CALL.REL.NOINC `($cap)", "MUFU.EX2 R1, R1"):
        work = f"@!P1 BRA `(.L_4)\n{rare}\n.L_4:\nBRA.DIV UR7, `(.L_9)\n{EIGHT}"
        (found,) = count(PASS.format(work=work) + ".L_9:\nBRA `(.L_4)")
        assert (found.instructions, found.exponentials, found.elements) == (13, 8, 8)


def test_unrolled_loops_have_the_elements_of_all_copies() -> None:
    for copies in (1, 2, 4):
        body = "".join(
            f"LDG.E.128 R4, desc[UR4][R2.64+{16 * c:#x}]\n{EIGHT}" for c in range(copies)
        )
        (found,) = count(f".L_0:\n{body} @P0 BRA `(.L_0)\nEXIT")
        assert found.elements == 8 * copies and found.instructions == 9 * copies + 1


def test_an_address_is_another_one_after_its_register_changed() -> None:
    load = "LDG.E.128 R4, desc[UR4][R2.64]"
    for between, elements in (
        ("IADD3 R2, R2, R3, RZ", 16), ("IADD3 R3, R2, R1, RZ", 16),
        ("IMAD.WIDE R1, R5, 0x2, R6", 16), ("UIADD3 UR4, UR4, 0x1, URZ", 16),
        ("IADD3 R1, R2, R3, RZ", 8), ("STG.E.U16 desc[UR4][R6.64], R2", 8),
    ):  # fmt: skip
        (found,) = count(f".L_0:\n{load}\n{between}\n{load}\n@P0 BRA `(.L_0)\nEXIT")
        assert found.elements == elements, between


def test_the_least_of_loads_stores_and_exponentials_counts() -> None:
    load, store = "LDG.E.128 R4, desc[UR4][R{}.64]", "STG.E.128 desc[UR4][R{}.64], R4"

    def elements(loads: int, stores: int, powers: int, streams: Streams = HARD_BF16) -> int:
        body = [load.format(10 + 2 * n) for n in range(loads)]
        body += [store.format(40 + 2 * n) for n in range(stores)]
        body += ["MUFU.EX2 R9, R9"] * powers
        (found,) = count("\n".join([".L_0:", *body, "@P0 BRA `(.L_0)", "EXIT"]), streams)
        return found.elements

    assert elements(1, 1, 8) == elements(2, 1, 8) == elements(1, 1, 16) == elements(2, 2, 8) == 8
    assert elements(2, 2, 16) == elements(2, 2, 0) == 16 and elements(2, 1, 0) == 8
    assert elements(2, 1, 8, DENSE_BF16) == elements(3, 1, 8, Streams(6, 2)) == 8


FETCH = """
.L_0:
  LDGSTS.E.BYPASS.128 [R8], desc[UR4][R2.64]
  IADD3 R2, R2, 0x10, RZ
  @P2 BRA `(.L_2)
.L_1:
  IADD3 R6, R6, 0x10, RZ
  IADD3 R7, R7, 0x10, RZ
  {copies}
  @P1 BRA `(.L_1)
.L_2:
  @P0 BRA `(.L_0)
  EXIT
"""


def test_copies_of_dense_labels_run_once_for_each_vector_of_them() -> None:
    copy = "LDGSTS.E.BYPASS.128 [R7{}], desc[UR4][R6.64{}]\n"
    rolled, unrolled = copy.format("", ""), copy.format("", "") + copy.format("+0x10", "+0x10")
    (same,) = count(FETCH.format(copies=rolled), DENSE_BF16, inner=1)
    assert (same.kind, same.elements, same.instructions) == ("fetch", 8, 3 + 4 + 1)
    (wider,) = count(FETCH.format(copies=rolled), Streams(6, 2), inner=2)
    assert (wider.elements, wider.instructions, wider.loaded) == (8, 3 + 2 * 4 + 1, 48)
    (wider,) = count(FETCH.format(copies=unrolled), Streams(6, 2), inner=2)
    assert (wider.elements, wider.instructions, wider.loaded) == (8, 3 + 5 + 1, 48)


def test_a_loop_that_only_follows_another_of_its_kind_is_no_main_loop() -> None:
    again = (
        PASS.replace(".L_0", ".L_5").format(work="FADD R5, R5, R4\n" + EIGHT).replace("EXIT", "")
    )
    first = PASS.format(work=EIGHT).replace("EXIT", "@P3 EXIT")
    (found,) = count(first + again + "EXIT")
    assert found.instructions == 11
    # Alternatives: the one of more instructions.
    one, two = PASS.format(work=EIGHT), again.replace("EXIT", "") + "EXIT\n"
    (found,) = count(f"@P3 BRA `(.L_6)\n{one}.L_6:\n{two}")
    assert found.instructions == 12


def test_a_loop_around_the_loop_of_a_row_is_not_counted() -> None:
    inside = PASS.format(work=EIGHT).replace("EXIT", "")
    for around in ("IADD3 R1, R1, 0x1, RZ", "LDS.128 R20, [R24]\n" + "FADD R1, R1, R20\n" * 9):
        (found,) = count(f".L_8:\n{around}\n{inside} @P4 BRA `(.L_8)\nEXIT")
        assert found.instructions == 11


def test_narrow_accesses_of_an_iteration_are_counted() -> None:
    work = f"LDG.E.U16 R9, desc[UR4][R6.64]\nSTG.E desc[UR4][R6.64], R9\nLDS R9, [R8]\n{EIGHT}"
    (found,) = count(PASS.format(work=work))
    assert (found.kind, found.narrow, found.loaded, found.shared) == ("pass", 2, 16, 0)


def test_zeros_and_narrow_rows_are_no_main_loops() -> None:
    store = ".L_0:\nSTG.E.128 desc[UR4][R2.64], RZ\n@P0 BRA `(.L_0)\nEXIT"
    narrow = store.replace("\nSTG", "\nLDG.E.U16 R4, desc[UR4][R6.64]\nSTG")
    assert [n.kind for n in count(store)] == [n.kind for n in count(narrow)] == ["whole"]
    one = "LDG.E.128 R4, desc[UR4][R2.64]\nSTG.E.128 desc[UR4][R2.64], R4\nEXIT"
    (found,) = count(one)
    assert (found.kind, found.elements, found.instructions) == ("whole", 8, 3)
    assert count("MOV R1, R2\nEXIT") == []


def test_edges_of_the_control_flow() -> None:
    flow = Flow(function("""
      @P0 BRA `(.L_1)
      @!PT BRA `(.L_9)
      BRA.U UP0, `(.L_2)
      @P1 CALL.REL.NOINC `(.L_3)
      CALL.REL.NOINC `($outlined)
      @P2 EXIT
      BRX R6 -0x1050 (*"BRANCH_TARGETS .L_1,.L_2"*)
    .L_1:
      BRA `(.L_3)
    .L_2:
      MOV R1, R2
    .L_3:
      EXIT
    .L_9:
      BRA `(.L_9)
    """))  # fmt: skip
    edges = {block: sorted(flow.graph.successors(block)) for block in flow.graph}
    assert edges == {
        0: [1, 7], 1: [2, 10], 2: [3, 8], 3: [4, 9], 4: [6], 6: [7, 8], 7: [9], 8: [9],
        9: [], 10: [10],
    }  # fmt: skip


def test_blocks_of_an_sm() -> None:
    assert H200.blocks_of(64, 512, 0) == 2  # registers
    assert H200.blocks_of(41, 256, 0) == 5  # 48: they come in units of 8
    assert H200.blocks_of(16, 1024, 0) == 2  # threads
    assert H200.blocks_of(32, 32, 0) == 32  # blocks
    assert H200.blocks_of(64, 256, 66_000) == 3 and A100.blocks_of(64, 256, 66_000) == 2
    assert H200.blocks_of(32, 32, 240_000) == 0
    assert B200.bytes_needed == pytest.approx(43_243, abs=1)


def kernel(**new: object) -> Kernel:
    loops = tuple(main_loops(reviewed()["cuda_hard_bf16"], HARD_BF16))
    fields = {
        "backend": "cuda", "name": "rows", "arch": 90, "streams": HARD_BF16, "loops": loops,
        "registers": 64, "threads": 256, "shared": 65_664, "tile": 64_128,
    }  # fmt: skip
    return Kernel(**fields | new)  # type: ignore[arg-type]


def test_prediction_of_the_reviewed_kernel() -> None:
    """By hand: 0.89 ms of issue at 100 %, 1.19 at 75 %, 0.57 of exponentials, 0.88 of memory."""
    p = predict(kernel())
    assert p.issue * 1e3 == pytest.approx(1.19, abs=0.01)
    assert p.exponentials * 1e3 == pytest.approx(0.57, abs=0.01)
    assert p.memory == pytest.approx(p.floor) and p.floor * 1e3 == pytest.approx(0.876, abs=0.001)
    assert p.time == p.issue and p.bound == "issue"
    assert kernel().blocks == 3 and kernel().in_flight == 3 * 64_128
    assert from_dict(to_dict(kernel())) == kernel()


def test_memory_bound_is_within_five_percent_of_the_floor() -> None:
    loop = LoopCount("write", 8, 8, 8, 16, 16, 0, 0)
    base = kernel(loops=(loop,), tile=0)
    floor = predict(base).floor
    per_issue = predict(base).issue / 8
    for times, bound in ((1.04, "memory"), (1.06, "issue")):
        some = replace(loop, instructions=round(times * floor / per_issue * 1000), elements=8000)
        wide = replace(some, exponentials=8000, loaded=16_000, stored=16_000)
        assert predict(kernel(loops=(wide,), tile=0)).bound == bound
    slow = replace(loop, exponentials=40)
    assert predict(kernel(loops=(slow,), tile=0)).bound == "exponentials"


def test_a_row_read_twice_comes_from_l2_as_far_as_it_fits() -> None:
    first = LoopCount("pass", 32, 32, 32, 64, 0, 0, 0)
    second = LoopCount("write", 32, 32, 32, 64, 64, 0, 0)
    twice = kernel(loops=(first, second), threads=512, shared=256, tile=0)
    assert twice.in_flight == 64 * 512 * 2
    p = predict(twice)
    assert p.memory == pytest.approx(p.floor)  # 132 x 2 x 256,512 B / 2 = 34 MB of 50
    longer = predict(replace(twice, classes=2 * twice.classes))
    missed = 1 - H200.l2 / (132 * 2 * 2 * 256_512 / 2)
    assert longer.memory == pytest.approx(longer.floor * (4 + 2 * missed) / 4)
    assert longer.bound == "cache"


def test_complaints_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every limit, on kernels that keep them all."""
    rows = Limit((0, 25.2, 0), 2.01, (0, 2, 0), (0, 6, 0))
    starved = Limit((0, 9.5, 0), 1.01, (0, 2, 0), memory=(90,), starved=(90,))
    monkeypatch.setitem(LIMITS["cuda"], "RowsKernel<test>", rows)
    monkeypatch.setitem(LIMITS["cuda"], "GradientKernel<test>", starved)
    fine = kernel(name="RowsKernel<test>")
    assert list(complaints(fine)) == [] == list(complaints(replace(fine, name="unknown", tile=0)))
    fetch, sums, write = fine.loops
    for loops, why in (
        ((fetch, write), "loops"),
        ((fetch, replace(sums, instructions=sums.instructions + 8), write), "instructions"),
        ((fetch, replace(sums, exponentials=9), write), "exponentials"),
        ((fetch, replace(sums, loaded=16), write), "loaded"),
        ((fetch, replace(sums, shared=32), write), "shared"),
        ((fetch, sums, replace(write, narrow=1)), "below 16 bytes"),
    ):
        (found,) = complaints(replace(fine, loops=loops))
        assert why in found
    (found,) = complaints(replace(fine, tile=7_000))
    assert "21000 bytes in flight, at least 24000" in found
    write = replace(write, loaded=16, shared=0)
    fine = kernel(name="GradientKernel<test>", loops=(write,), tile=0, shared=1536)
    assert fine.in_flight == 16 * 256 * 4 and list(complaints(fine)) == []
    (found,) = complaints(replace(fine, threads=1024, registers=32))
    assert "32768 bytes in flight are enough" in found
    (found,) = complaints(replace(fine, loops=(replace(write, stored=32),)))
    assert "cache-bound, not memory-bound" in found


def test_page_lists_whole_rows_as_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "nvcc_version", lambda: "13.0")
    monkeypatch.setattr(write, "version", lambda name: "3.7.1")
    listed, short = kernel(name="listed"), kernel(name="short", classes=4096)
    narrow = kernel(name="narrow", loops=kernel().loops[:2])  # nothing wide is stored
    text = write.page([listed, short, narrow])
    assert text.count("**Predicted, not measured.**") == 1
    sections = text.split("\n## ")
    titles = [s.splitlines()[0] for s in sections[2:]]
    assert titles == [f"{m.name} (sm_{m.arch}), predicted" for m in (A100, H200, B200)]
    rows = [[line for line in s.splitlines() if line.startswith("| cuda")] for s in sections[2:]]
    assert rows == [[], [write.row(listed)], []]
    for table in sections[2:]:
        lines = [line.count("|") for line in table.splitlines() if line.startswith("|")]
        assert len(set(lines)) == 1
    assert "| 25.1 (2.6 + 13.0 + 9.5) | 2.00 | 2 | 6 | 64 | 3 | 192 | 1.19 |" in rows[1][0]
    assert rows[1][0].endswith("| 1.19 | issue |")


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "/nowhere/nvcc -O1")
    with pytest.raises(W2SError, match="'/nowhere/nvcc' was found; install nvcc or set NVCC"):
        cuda.nvcc()
    monkeypatch.setattr(sass, "find_spec", lambda name: None)
    with pytest.raises(W2SError, match="triton is missing: its wheel brings cuobjdump"):
        sass.tool("nvdisasm")
    monkeypatch.setattr(tiling.importlib, "import_module", missing)
    with pytest.raises(W2SError, match="W2S_BUILD_EMULATION=1"):
        tiling.tiling_of_rows(90, 2, 0, 1000)


def missing(name: str) -> None:
    raise ModuleNotFoundError(name)


@pytest.mark.skipif(not shutil.which("c++filt"), reason="binutils are missing")
def test_names_of_kernels() -> None:
    """Types come first, then flags; the first flag of a row kernel depends on the device."""
    space = "49_GLOBAL__N__3b315627_16_cross_entropy_cu_2a897e0a"
    of = f"_ZN3w2s4cuda{space}6kernelIN{space}{{}}EEEvNS_7RowCallENS0_6TilingE"
    rows = of.format("10RowsKernelINS3_4BF16ENS3_4NoneELb1ELi3EE")
    gradient = of.format("14GradientKernelIffE")
    names = cuda.names_of([rows, gradient, of.format("9TwoKernelIfE")])
    assert set(names) == {rows, gradient}
    assert str(names[rows]) == "RowsKernel<BF16, None, true, 3>" and names[rows].resident
    assert names[rows].mode == "RowsKernel<BF16, None, 3>" and names[rows].widths == (2, 0)
    assert names[gradient].mode == "GradientKernel<float, float>"
    assert names[gradient].widths == (4, 4) and not names[gradient].resident
