"""Runs: train a model in a folder, show its progress, write its report, prune its model."""
