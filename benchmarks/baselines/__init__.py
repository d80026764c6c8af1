"""What the operators are timed against and this package does not hold otherwise."""
