"""What is planned and what a run achieved: tables, pages and figures."""
