"""``python -m gns``: what a policy, a plan or a finished run is, told and drawn."""
