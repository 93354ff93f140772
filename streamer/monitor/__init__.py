"""What people see of a run while it goes on: a page on loopback, and the same in a terminal."""
