"""The evaluation protocol, and figures computed from its runs."""
