"""The strategies that a study knows by name, its own peers among them, and yours."""
