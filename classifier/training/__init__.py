"""What finetune.py calls: micro-batches, predictions, the start of a run, its record and curves, the stop flag."""
