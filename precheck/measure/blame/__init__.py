"""Which operation made a fault, and why."""
