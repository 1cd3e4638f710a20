"""What is documented of devices, attention implementations, engines and model families, as data."""
