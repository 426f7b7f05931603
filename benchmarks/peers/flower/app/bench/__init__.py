"""The app that Flower runs: a server and clients that exchange and add up arrays."""
