"""The status page: the run as a person wants to see it, read-only, out of the coordinator itself."""
