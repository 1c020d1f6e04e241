"""What proves the numbers of the pages: benchmark, tables, runs to reproduce, notes. The product never imports it."""
