"""What came of the runs, as tables, and how good it is."""
