"""Low-rank factors of a table of embeddings by the singular value decomposition."""

import torch
from torch import Tensor

from filbert import FilbertError


def low_rank_factors(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U S [V, rank] and V [D, rank] of the `rank` largest singular values of a table [V, D] = U S Vᵀ.

    Raises:
        FilbertError: `rank` is more than V or D.
    """
    if rank > min(table.shape):
        tokens, width = table.shape
        raise FilbertError(
            f"embeddings: expected a rank of at most {min(table.shape)}, the table has {tokens} tokens of width {width}; got {rank}"
        )
    u, s, v = torch.linalg.svd(table.float(), full_matrices=False)
    return (u * s)[:, :rank], v.T[:, :rank]
