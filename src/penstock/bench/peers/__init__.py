"""One script a peer, `NAME_peer.py`, run by that peer's own Python: adding a peer means adding one file.

A script imports nothing of Penstock. It is called with a JSON file: checkpoint (a folder), dtype, threads, max_isa
(the cap of the instruction set, or null; PyTorch and oneDNN are capped by their environment), kv_bytes, max_sequences,
context_tokens, warm_up (false: do nothing but load). It loads the model with these, prefix caching on, and writes one
line {"ready": true, "title": its name and version, "notes": what it could not do as asked}, with "computed_why_not"
where it cannot count the tokens that it computes. Then, for each line of stdin, the path of a workload (JSONL of
prompt_token_ids and max_tokens), it runs the workload with greedy sampling and end-of-sequence
ignored, starting from an empty prefix cache, and writes one line {"wall_s", "prompt_tokens", "output_tokens",
"computed_tokens": of prompts and of answers fed back, less what a cache held}. Lines on stdout that are not such
objects are ignored. It ends when stdin does.
"""
