"""The machine a scan runs on."""
