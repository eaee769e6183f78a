"""The stage tokenize: messages.parquet becomes token ids and loss masks, in a data set that is memory-mapped."""
