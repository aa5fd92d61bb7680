"""When has training at a constant rate stopped making progress? One statistic per file."""
