# the course's last-linear-layer mode on CFIMDB: GPT-2 small is frozen, only the head is trained
data_dir = "data/cfimdb"
out_dir = "out-cfimdb-last-linear"

trainable_blocks = 0
block_size = 512
batch_size = 16
gradient_accumulation_steps = 1

learning_rate = 1e-3
dropout = 0.0  # features are computed once, without dropout
epochs = 20
