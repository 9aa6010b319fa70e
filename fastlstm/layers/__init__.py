"""What users build with: recurrent layers, cells for one step, Embedding, Linear and Dropout."""
