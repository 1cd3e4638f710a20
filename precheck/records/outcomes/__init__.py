"""What other commands than a scan find out."""
