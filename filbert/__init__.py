"""Filbert: BERT in a nutshell. What is computed: tensors in, tensors out."""


class FilbertError(Exception):
    """Something the user gave cannot be used; the message says what was expected, what came, where, and what to do."""
