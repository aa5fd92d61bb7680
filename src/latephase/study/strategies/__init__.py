"""Late-phase strategies, one file each, and yours."""
