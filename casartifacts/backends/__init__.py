"""The places that keep named bytes; each file here is one of them, and knows nothing of digests."""
