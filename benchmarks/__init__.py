"""What scans cost, measured; nothing of it runs in the tests."""
