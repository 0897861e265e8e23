"""Whole jobs, as the command line and the benchmarks do them: from names of a model and a task to files in a folder."""
