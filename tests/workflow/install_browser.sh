#!/usr/bin/env bash
# A browser for tests/workflow/test_report_in_browser.py, which is skipped without it: Debian's
# Chromium, and Playwright to drive it, in the virtual environment. Needs root for apt.
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v chromium || apt-get install --yes --no-install-recommends chromium
.venv/bin/python -m pip install --disable-pip-version-check -e '.[browser]'
