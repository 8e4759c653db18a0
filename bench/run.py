"""``python -m bench run``: time the ops against eager PyTorch, torch.compile and the memory floor.

Every job runs in a new process per allocator setting. ``stock`` is the C library's allocator, which
users have: every buffer of a few MB is newly mapped and causes page faults. ``recycled`` keeps
freed pages, as jemalloc and tcmalloc do, which isolates the kernel. Both are reported.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator

from bench.cases import cross_entropy, linear, quantile, two_class
from bench.harness.jobs import Job
from bench.harness.row_files import add_output_options
from bench.harness.spawn import ALLOCATORS, measure_groups, select_names

OPS = ("cross_entropy", "linear_cross_entropy", "two_class", "quantile")
_CASES = tuple(dict.fromkeys(cross_entropy.CASES + linear.CASES))
_QUICK_SHAPE = (6, 130)
_QUICK_HEAD = (6, 16, 130)


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m bench run``."""
    p = argparse.ArgumentParser(prog="python -m bench run", description=__doc__.splitlines()[0])
    p.add_argument("--op", default=",".join(OPS), help="comma-separated: %(default)s")
    p.add_argument("--cases", default="", help=f"of {','.join(_CASES)}; default: all of the op")
    p.add_argument("--dtypes", default="", help="fp32, bf16; default: those that suit each shape")
    shapes = ",".join(f"{n}x{v}" for n, v in cross_entropy.SHAPES)
    p.add_argument("--shapes", default=shapes, help="NxV of cross_entropy: %(default)s")
    heads = ",".join("x".join(map(str, s)) for s in linear.SHAPES)
    p.add_argument("--heads", default=heads, help="NxDxV of linear_cross_entropy: %(default)s")
    sizes = ",".join(map(str, quantile.SIZES))
    p.add_argument("--sizes", default=sizes, help="N of quantile, up to 1e8 and more: %(default)s")
    p.add_argument("--allocator", default="stock,recycled", help="%(default)s")
    p.add_argument("--providers", default="", help="comma-separated; default: all of the op")
    p.add_argument("--rounds", type=int, default=0, help="turns of each candidate; 0: by op")
    p.add_argument("--threads", type=int, default=2, help="of the large cases: %(default)s")
    add_output_options(p)
    return p


def jobs(a: argparse.Namespace) -> Iterator[Job]:
    """Yield the jobs that the options select."""
    for op, allocator in itertools.product(
        select_names(a.op, OPS), select_names(a.allocator, ALLOCATORS)
    ):
        if op == "cross_entropy":
            yield from _cross_entropy_jobs(a, allocator)
            continue
        if op == "linear_cross_entropy":
            yield from _linear_jobs(a, allocator)
            continue
        module = two_class if op == "two_class" else quantile
        case, columns = ("logconf", 2) if op == "two_class" else ("median", 1)
        providers = _providers(a, module.PROVIDERS)
        # Launches dominate a loss over two classes: a second thread would only wait.
        threads = 1 if op == "two_class" else a.threads
        rounds = a.rounds or (3 if a.quick else 60 if op == "two_class" else 7)
        if op == "quantile":
            sizes = (1000,) if a.quick else tuple(_count(n) for n in a.sizes.split(","))
        else:
            sizes = two_class.SIZES[:1] if a.quick else two_class.SIZES
        for n in sizes:
            yield Job(op, case, "fp32", n, columns, allocator, threads, providers, rounds, a.quick)


def _cross_entropy_jobs(a: argparse.Namespace, allocator: str) -> Iterator[Job]:
    cases = _cases(a, cross_entropy.CASES)
    dtypes = select_names(a.dtypes, cross_entropy.DTYPES)
    providers = _providers(a, cross_entropy.PROVIDERS)
    shapes = [_QUICK_SHAPE] if a.quick else [_shape(s, "NxV") for s in a.shapes.split(",")]
    rounds = a.rounds or (2 if a.quick else 5)
    for (n, v), dtype, case in itertools.product(shapes, dtypes, cases):
        yield Job(
            "cross_entropy", case, dtype, n, v, allocator, a.threads, providers, rounds, a.quick
        )


def _linear_jobs(a: argparse.Namespace, allocator: str) -> Iterator[Job]:
    providers = _providers(a, linear.PROVIDERS)
    shapes = [_QUICK_HEAD] if a.quick else [_shape(s, "NxDxV") for s in a.heads.split(",")]
    for n, d, v in shapes:
        # A head of 128256 classes in fp32 is unusual and takes minutes.
        large = (n, d, v) == linear.SHAPES[1]
        dtypes = select_names(a.dtypes or ("bf16" if large else ""), cross_entropy.DTYPES)
        for dtype, case in itertools.product(dtypes, _cases(a, linear.CASES)):
            yield Job(
                "linear_cross_entropy", case, dtype, n, v, allocator, a.threads, providers,
                a.rounds or (2 if a.quick else 3), a.quick, d,
            )  # fmt: skip


def _cases(a: argparse.Namespace, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the selected cases of an op; a case of another op is not an error."""
    return tuple(case for case in select_names(a.cases, _CASES) if case in known)


def _providers(a: argparse.Namespace, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the selected providers of an op."""
    names = a.providers.split(",") if a.providers else known
    return tuple(name for name in names if name in known)


def _count(text: str) -> int:
    try:
        return int(float(text))
    except ValueError:
        raise SystemExit(f"bench: size {text!r}; expected a number, as 1e8") from None


def _shape(text: str, form: str) -> tuple[int, ...]:
    parts = text.split("x")
    if len(parts) != len(form.split("x")) or not all(p.isdecimal() for p in parts):
        raise SystemExit(f"bench: shape {text!r}; expected {form}, as 4096x32000")
    return tuple(int(p) for p in parts)


def main(args: list[str]) -> int:
    """Measure the selected jobs, print and store their rows."""
    a = parser().parse_args(args)
    selected = list(jobs(a))
    # A toy run shares one process per allocator and thread count; a real one shares nothing.
    groups = [[job] for job in selected]
    if a.quick:
        by_process = sorted(selected, key=_process)
        groups = [list(group) for _, group in itertools.groupby(by_process, _process)]
    measure_groups(groups, a)
    return 0


def _process(job: Job) -> tuple[str, int]:
    return job.allocator, job.threads
