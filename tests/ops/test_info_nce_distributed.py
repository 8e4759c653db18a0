"""InfoNCE against the documents of all ranks: the loss of one place. Real processes, gloo.

Run as a program this file is one rank.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from helpers import ranks

import w2s_fast
from w2s_fast.ops.info_nce.gather import gather_documents
from w2s_fast.ops.info_nce.reference import info_nce_reference

WORLD, N, D = 2, 5, 8


def test_errors() -> None:
    with pytest.raises(w2s_fast.W2SError, match="expected a torch.distributed process group"):
        gather_documents(torch.ones(2, 3))


def test_one_rank(one_rank: object) -> None:
    documents = torch.randn(4, 3, requires_grad=True)
    gathered, first = gather_documents(documents, one_rank)
    gathered.square().sum().backward()
    assert first == 0 and torch.equal(gathered, documents)
    assert documents.grad is not None and torch.equal(documents.grad, 2 * documents.detach())
    with pytest.raises(w2s_fast.W2SError, match=r"documents have shape \(4,\)"):
        gather_documents(torch.ones(4), one_rank)


@pytest.mark.slow
@pytest.mark.dist
def test_ranks_agree_with_one_place() -> None:
    ranks.run(__file__, WORLD, {})


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    g = torch.Generator().manual_seed(0)
    queries, documents, encoder = (
        torch.randn(*s, generator=g) for s in ((WORLD * N, D), (WORLD * N, D), (D, D))
    )

    def loss_of(weight: torch.Tensor, rows: slice) -> torch.Tensor:
        return w2s_fast.info_nce(
            queries[rows] @ weight, *documents_of(documents[rows] @ weight), temperature=2.0
        )

    def documents_of(mine: torch.Tensor) -> tuple[torch.Tensor]:
        gathered, first = gather_documents(mine)
        assert first == rank * N
        return (gathered.roll(-first, 0),)  # this rank's own documents come first

    weight = encoder.clone().requires_grad_()
    rows = slice(rank * N, (rank + 1) * N)
    loss_of(weight, rows).backward()
    assert weight.grad is not None
    dist.all_reduce(weight.grad)

    one = encoder.clone().requires_grad_()
    info_nce_reference(queries @ one, documents @ one, temperature=2.0).backward()
    assert one.grad is not None
    torch.testing.assert_close(weight.grad / WORLD, one.grad, rtol=1e-4, atol=1e-6)

    gathered, first = gather_documents(documents[rows])
    assert torch.equal(gathered, documents) and first == rank * N
    with pytest.raises(w2s_fast.W2SError, match=r"shapes \[\(1, 3\), \(2, 3\)\]"):
        gather_documents(torch.ones(1 + rank, 3))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
