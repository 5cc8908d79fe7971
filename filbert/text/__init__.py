"""Text without labels: transfer sets, augmentation, masked language models, word vectors, the pretraining corpus."""
