"""Model families as data: what a decoder is made of, which checkpoints describe one, and how it computes."""
