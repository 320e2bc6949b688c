"""The rooms behind `tools/bench`, which is the command and says the rules of every race.

rows        what a row is, what it is raced with, and the list of them
local       rows on this machine: cp, one BLAKE3 pass, Optuna's file store
buckets     rows on servers: S3 and GCS, against Optuna's stores there
jobs        what the sides do            remote   a server to race on, and the link to it
memory      peaks, each in a process of its own
races       both sides take turns        table    what a person reads
"""
