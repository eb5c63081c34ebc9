"""Readers: folders, tables, vectors and icons to a `divcon.Benchmark`."""
