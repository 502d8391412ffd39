"""Snakemake's records, what is made again, what holds a folder, and what outlives a crash."""
