"""The graph network of a policy, and the file it is kept in."""
