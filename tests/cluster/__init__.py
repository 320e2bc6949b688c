"""A small cluster in processes of this machine, for `test_cluster`.

training   what a worker does: trials that train models, upload checkpoints, go on from others'
crew       the workers' processes: started, sampled, killed, replaced
weather    faults that come and go in a proxy, each seen to strike
clients    many threads in many processes that upload at once, and tasks for pools of processes
audit      what lies in the bucket at the end, read without our software
"""
