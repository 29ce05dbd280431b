"""Penstock runs large files of prompts through open-weight language models and never loses a row."""
