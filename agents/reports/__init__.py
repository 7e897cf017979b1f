"""What an evaluation leaves behind for people: tables, plots, pages and W&B reports."""
