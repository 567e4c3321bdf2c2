# a toy: a tiny GPT from scratch on the sample of this repository, to try everything on a CPU in half a minute
# it is wrong on about one in four texts of its dev set, negations above all
data_dir = "data/sample"
out_dir = "out-sample"

init_from = "scratch"
n_layer = 1
n_head = 1
n_embd = 64

block_size = 64
batch_size = 32
gradient_accumulation_steps = 1

learning_rate = 1e-3
lr_schedule = "cosine"
warmup_steps = 20
dropout = 0.3
epochs = 6
