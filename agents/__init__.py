"""Who decides: PPO on graphs, every baseline, the evaluation protocol and its reports."""
