# GPT-2 small on CFIMDB with a question after every review; the head starts as the answers' embeddings
data_dir = "data/cfimdb"
out_dir = "out-cfimdb-prompt"

prompt = " Is the sentence sentiment negative or positive:"
label_words = ["negative", "positive"]

block_size = 512  # the review and the prompt's 8 tokens
batch_size = 8
gradient_accumulation_steps = 64

learning_rate = 5e-5
dropout = 0.2
epochs = 20

reference_accuracy = 0.988  # of the reference repository, with this prompt
