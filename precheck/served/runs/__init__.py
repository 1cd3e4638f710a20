"""What every configuration of a checkpoint says of a server's answers: run now, or saved before."""
