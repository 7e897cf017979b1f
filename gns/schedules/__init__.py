"""Fixed schedules: shapes of the rate over progress."""
