"""The method's mathematics: tensors in, tensors out; no network, files, clocks or global randomness."""
