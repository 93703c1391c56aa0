"""What every run needs of the system that it is on.

* `files`: files and folders that appear whole or not at all; notes in JSON; locks
* `netcdf`: labelled arrays as files
* `store`: the finished pieces of a run, and what run they are of
* `values`: what files say, against the types that it must have and against what it was
* `interruption`: SIGTERM, which waits for what is at work
* `launch`, `distributed`: the processes of one command, and which of them was lost
"""
