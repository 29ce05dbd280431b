"""Every op that computes on tensors: `reference.py` defines correct, faster implementations are held to it."""
