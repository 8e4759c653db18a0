"""How often the alarm of a student that fits errors of its weak labels is right."""
