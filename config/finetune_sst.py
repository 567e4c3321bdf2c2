# GPT-2 small on SST, five classes: 8,544 sentences, 5 optimizer steps an epoch
data_dir = "data/sst"
out_dir = "out"

block_size = 64
batch_size = 64
gradient_accumulation_steps = 32

learning_rate = 5e-5
dropout = 0.2
epochs = 20

reference_accuracy = 0.519  # of the reference run
