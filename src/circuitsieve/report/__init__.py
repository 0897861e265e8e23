"""What people see of a circuit."""
