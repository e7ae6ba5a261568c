"""Genes: read with their places on contigs (Prodigal's FASTA, GenBank), or found on contigs."""
