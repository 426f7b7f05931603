"""What workers talk to: calls, sessions, a round's state, updates and who may send them."""
