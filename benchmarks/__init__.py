"""Side by side with what a user would do instead: every figure a ratio, measured in one run, interleaved."""

import filbert  # noqa: F401  # before all libraries: turns off what they report
