"""From an observation to a rate: when rates are decided, what an action does to them, and the guard."""
