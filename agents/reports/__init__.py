"""Tables, plots, pages and W&B reports of an evaluation."""
