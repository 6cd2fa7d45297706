"""Optional integrations. Each has its own extra."""
