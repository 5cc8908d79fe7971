"""The singular value decomposition of a table of embeddings: the best table of fewer numbers a token, and the way back."""

import torch
from torch import Tensor

from filbert import FilbertError


def low_rank_factors(table: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U S [V, rank] and its projection back [D, rank] of the `rank` strongest directions of a table [V, D] = U S Vᵀ.

    Raises:
        FilbertError: it has fewer directions.
    """
    if rank > min(table.shape):
        tokens, width = table.shape
        raise FilbertError(
            f"embeddings: expected at most {min(table.shape)} numbers a token, what {tokens} tokens of {width} numbers have "
            f"directions for; got {rank}"
        )
    u, s, v = torch.linalg.svd(table.float(), full_matrices=False)
    return (u * s)[:, :rank], v.T[:, :rank]
