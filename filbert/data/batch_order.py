"""Which rows make a batch: rows of similar length, in an order that depends on seed and epoch alone."""

import numpy as np

BUCKET = 50  # batches whose rows are sorted by length together


def shuffled_batches(
    lengths: np.ndarray, size: int, seed: int, epoch: int, tokens: int | None = None
) -> list[np.ndarray]:
    """The batches of one epoch as positions of rows: shuffled, then grouped by similar length; of `size` rows or, if given,
    of at most so many `tokens`.

    Depends on its arguments alone, so that a resumed epoch continues where it stopped.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    if tokens is None:
        bucket = size * BUCKET
        groups = (order[start : start + bucket] for start in range(0, len(order), bucket))
        ordered = [group[np.argsort(lengths[group], kind="stable")] for group in groups]
        batches = [group[start : start + size] for group in ordered for start in range(0, len(group), size)]
    else:
        batches = np.split(order[np.argsort(lengths[order], kind="stable")], token_cuts(lengths, tokens))
    return [batches[i] for i in generator.permutation(len(batches))]


def token_cuts(lengths: np.ndarray, tokens: int) -> list[int]:
    """Where rows sorted by length are cut into batches of at most so many tokens, padding included; a longer row is a batch alone.

    The cuts depend on the lengths alone, so that every epoch has as many batches: only rows of equal length change places.
    """
    cuts = [0]
    for end, length in enumerate(np.sort(lengths).tolist()):
        if end > cuts[-1] and (end + 1 - cuts[-1]) * length > tokens:
            cuts.append(end)
    return cuts[1:]
