"""Documents, tokenizer, token store, packing, order: everything before the first tensor."""
