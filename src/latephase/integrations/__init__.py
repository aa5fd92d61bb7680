"""Second phases for the trainers of other frameworks; each needs its framework, and is imported by its full name."""
