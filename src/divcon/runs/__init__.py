"""Runs: a training in a folder, with its display, its report and what is made of its model."""
