"""What is fed to a model."""
