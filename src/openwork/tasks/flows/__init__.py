"""Network flows: readers of flow logs, the schema that is learned from them, and how rows become a network's features.

    schema     columns and classes, learned from a stream of rows and stored; rows to features
    readers    CSV, Parquet and Zeek conn.log (TSV and JSON) as a stream of batches
    prepared   a user's rows on disk as arrays, so that training never holds them all
    generated  flows made by documented rules, so that explanations can be checked
    nsl_kdd    the public benchmark with its official split

Knows rows. Does not know models or methods.
"""
