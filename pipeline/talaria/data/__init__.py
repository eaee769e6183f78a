"""The stages download and convert: any source becomes messages.parquet."""
