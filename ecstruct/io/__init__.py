"""Files, locks, signals and processes.

* `files`: atomic writing of files and folders; notes in JSON; locks
* `netcdf`: labelled arrays as files
* `store`: the finished pieces of a run, with the identity of the run
* `values`: validation of values by type, and comparison with earlier ones
* `interruption`: SIGTERM, deferred until the work in progress is finished
* `launch`, `distributed`: the processes of one command, and detection of lost ones
"""
