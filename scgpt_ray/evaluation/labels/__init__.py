"""How right transferred labels are."""
