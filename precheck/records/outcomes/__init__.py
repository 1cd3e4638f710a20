"""What other commands than a scan find out, and what holds for every prompt."""
