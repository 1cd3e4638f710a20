"""What is wrong with a server, one family of rules each (PC8xx)."""
