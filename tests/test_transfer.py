"""The transfer set: what is kept, and that nothing held out gets in."""

from collections import Counter

from filbert.transfer import HeldOut, TextConfig, kept, sentences

CONFIG = TextConfig(least_words=3, most_words=12, shingle=3, overlap=0.5, most=100)


def test_sentences_end_where_they_end() -> None:
    text = 'A fine film. "Really?" Yes!<br /><br />It cost 3.5 million\nand more'
    assert list(sentences(text)) == ["A fine film.", '"Really?', "Yes!", "It cost 3.5 million", "and more"]


def test_nothing_held_out_gets_in() -> None:
    """Not as it is, not in other case or spacing, not with a word more or less."""
    held = ["The plot is thin and the cast is wasted on it.", "Great fun"]
    close = [
        "the plot is thin  and the cast is wasted on it .",
        "Yes, the plot is thin and the cast is wasted on it.",
        "The plot is thin and the cast is wasted",
        "GREAT FUN",
    ]
    far = ["The plot is thin but I liked the songs and the dog.", "A great deal of fun for all."]
    counts: Counter[str] = Counter()
    assert list(kept([*close, *far, *held], HeldOut(held, 3), CONFIG, counts)) == far
    assert counts == {"held out": 4, "of another length": 2, "kept": 2}


def test_each_text_is_kept_once_up_to_the_limit() -> None:
    texts = [f"film number {i} was good" for i in (1, 2, 1, 3, 4)]
    counts: Counter[str] = Counter()
    few = TextConfig(3, 12, 3, 0.5, most=3)
    assert list(kept(texts, HeldOut([], 3), few, counts)) == [texts[0], texts[1], texts[3]]
    assert counts["duplicate"] == 1
