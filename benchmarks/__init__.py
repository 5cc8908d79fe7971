"""Side by side with what a user would do instead: every figure a ratio, measured in one run, interleaved."""
