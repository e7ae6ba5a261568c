"""How far a run is, read from the files in its working directory alone.

Nothing is asked of Snakemake or of a scheduler, so it works beside a run, on any machine that sees
the folder, and after a run that was killed. What the files do not tell is said to be unknown.
"""
