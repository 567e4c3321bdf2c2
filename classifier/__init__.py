"""What the scripts share: the ground here, and above it three rooms, data, training and answers, in this order."""
