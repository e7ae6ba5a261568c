#!/usr/bin/env bash
# Run by Snakemake in the new conda environment; workflow/rules/config.smk sets the variable.
set -euo pipefail
python -m pip install --no-deps "${VIRNUCPRO_SOURCE:?is what pip installs}"
