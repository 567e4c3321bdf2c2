# a small GPT from scratch on the sample that comes with the repository: a smoke run for a CPU, not a result
data_dir = "data/sample"
out_dir = "out-sample"

init_from = "scratch"
n_layer = 2
n_head = 4
n_embd = 128

block_size = 64
batch_size = 32
gradient_accumulation_steps = 1

learning_rate = 1e-3
dropout = 0.3
epochs = 6
