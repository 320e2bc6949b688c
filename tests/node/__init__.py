"""Many processes of one node, and the cache that they share.

place      a backend that is slow and writes down what it is asked for
readers    processes that download
"""
