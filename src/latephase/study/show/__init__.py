"""Results for people: tables, figures, the report."""
