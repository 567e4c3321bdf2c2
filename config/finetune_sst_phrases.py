# GPT-2 small on SST's sentences and their labelled phrases: 156,362 short examples, 1,222 optimizer steps an epoch
data_dir = "data/sst-phrases"
out_dir = "out-sst-phrases"

block_size = 64
batch_size = 64
gradient_accumulation_steps = 2

learning_rate = 2e-5
lr_schedule = "cosine"
warmup_steps = 200
dropout = 0.1
epochs = 3
eval_interval = 306  # four times an epoch

reference_accuracy = 0.519  # of the reference run, on sentences alone
