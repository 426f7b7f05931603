"""The two models: loaded, built, aligned, tuned, scored."""
