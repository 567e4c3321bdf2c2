# GPT-2 small on SST with a question after every sentence; the head starts as the answers' embeddings
data_dir = "data/sst"
out_dir = "out-sst-prompt"

prompt = " On a scale of 0 to 4, where 0 is negative, 2 neutral and 4 positive, rate sentence sentiment:"
label_words = ["0", "1", "2", "3", "4"]

block_size = 96  # the sentence and the prompt's 23 tokens
batch_size = 64
gradient_accumulation_steps = 32

learning_rate = 5e-5
dropout = 0.2
epochs = 20

reference_accuracy = 0.527  # of the reference repository, with this prompt
