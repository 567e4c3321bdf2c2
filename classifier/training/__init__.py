"""What finetune.py does beside the mathematics: micro-batches, where a run stands, what it writes, prints and obeys."""
