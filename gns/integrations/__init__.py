"""What makes the scheduler feel at home in training frameworks. Nothing here is imported before it is used."""
