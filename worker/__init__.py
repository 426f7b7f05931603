"""The worker service: fine-tunes the sub-FM on data that never leaves it."""
