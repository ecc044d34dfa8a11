"""What people read: pure functions from measured values to text and JSON."""
