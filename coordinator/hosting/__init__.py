"""Runs as a process holds them: one alone, or any number behind one port."""
