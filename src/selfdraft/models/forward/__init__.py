"""The target: a stock model over the token trees of many requests, whole or in part."""
