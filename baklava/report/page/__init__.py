"""One self-contained page with interactive figures, for people without Snakemake; one file per figure."""
