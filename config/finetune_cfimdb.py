# GPT-2 small on CFIMDB, two classes: 1,707 reviews, 4 optimizer steps an epoch
data_dir = "data/cfimdb"
out_dir = "out-cfimdb"

block_size = 512
batch_size = 8
gradient_accumulation_steps = 64

learning_rate = 5e-5
dropout = 0.2
epochs = 20

reference_accuracy = 0.984  # of the reference run
